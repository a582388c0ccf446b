"""Calls and commands cross a pipe as they are, and anything else is refused."""

from __future__ import annotations

import io
from dataclasses import fields

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from workers.engine.native.calls import (
    Call,
    CopyCall,
    DraftCall,
    ReadCall,
    SpeculateCall,
    VerifyCall,
)
from workers.handoff import messages
from workers.handoff.messages import Finish, Open, Push, Written
from workers.parallel.frames import FrameError, Told, encode, read_frame
from workers.state.memory import CopyPlan


def numbers(*shape: int) -> Tensor:
    return torch.randint(-(2**62), 2**62, shape)


def same(left: Told | None, right: Call) -> bool:
    if type(left) is not type(right):
        return False
    for field in fields(right):
        a, b = getattr(left, field.name), getattr(right, field.name)
        if isinstance(b, Tensor):
            if a.dtype != b.dtype or not torch.equal(a, b):
                return False
        elif a != b or type(a) is not type(b):
            return False
    return True


@given(batch=st.integers(1, 5), width=st.integers(0, 4), bf16=st.booleans())
def test_calls_arrive_as_they_were_sent(batch: int, width: int, bf16: bool) -> None:
    dtype = torch.bfloat16 if bf16 else torch.float32
    sent: list[Call] = [
        ReadCall(numbers(7), 3, numbers(2), 0, 7, True),
        DraftCall(
            numbers(batch, width),
            torch.randn(batch, width, 8).to(dtype).transpose(0, 1).contiguous().transpose(0, 1),
            numbers(batch, 3),
            numbers(batch),
            numbers(batch),
            width,
        ),
        VerifyCall(
            numbers(batch, width), numbers(batch), numbers(batch, 2), numbers(batch), numbers(batch)
        ),
        SpeculateCall(
            numbers(batch, width),
            torch.randn(batch, width, 8).to(dtype),
            numbers(batch),
            numbers(batch),
            numbers(batch),
            numbers(batch),
            numbers(batch, 3),
            numbers(batch),
            numbers(batch),
            3,
        ),
        CopyCall(1, 2, -1, -1),
    ]
    stream = io.BytesIO(b"".join(map(encode, sent)))
    for call in sent:
        assert same(read_frame(stream), call)
    assert read_frame(stream) is None


def test_commands_arrive_among_the_calls_that_they_were_sent_with() -> None:
    copy = CopyCall(1, 2, -1, -1)
    sent: list[Told] = [
        Open(2**63 + 1, bytes(range(256)), (4, 5), 3),
        copy,
        Push(2**63 + 1, 0, 16),
        copy,
        Finish(2**63 + 1, 16, 40, 7),
    ]
    stream = io.BytesIO(b"".join(map(encode, sent)))
    assert [read_frame(stream) for _ in sent] == sent


@pytest.mark.parametrize("plan", [CopyPlan(1, 2), CopyPlan(1, 2, 0, 4)])
def test_a_copy_is_the_plan_it_was_made_of(plan: CopyPlan) -> None:
    assert CopyCall.of(plan).plan == plan


@pytest.mark.parametrize("cut", [1, 5, 20, -1])
def test_a_frame_that_is_cut_is_refused(cut: int) -> None:
    frame = encode(ReadCall(numbers(7), 3, numbers(2), 0, 7, True))
    with pytest.raises(FrameError, match="ends within a frame"):
        read_frame(io.BytesIO(frame[:cut]))


_EVENT = messages.encode(Written(1, 2, 3, 4, 5, 6, 7.0, 8.0))


@pytest.mark.parametrize(
    ("kind", "text", "body"),
    [
        (b"c", b'{"call":"os.system"}', b""),
        (b"c", b'{"call":"CopyCall"}', b""),
        (b"c", b"[]", b""),
        (b"c", b"nonsense", b""),
        (b"h", b'["os.system"]', b""),
        (b"h", b'["Push", 1]', b""),
        (b"h", _EVENT, b""),
        (b"h", messages.encode(Push(1, 0, 16)), b"more"),
        (b"x", b"{}", b""),
    ],
)
def test_what_is_no_call_or_command_is_refused(kind: bytes, text: bytes, body: bytes) -> None:
    frame = kind + len(text).to_bytes(4, "little") + len(body).to_bytes(4, "little") + text + body
    with pytest.raises(FrameError, match=r"not a call|unknown"):
        read_frame(io.BytesIO(frame))
