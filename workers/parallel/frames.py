"""What rank 0 tells the ranks that follow it, as bytes: model calls, and commands about hand-offs.

Exists because what rank 0 tells the others must be cheap and must run no code on arrival: a frame
is its kind, two lengths, a JSON text and bytes. Of a call the text has names, numbers and shapes,
and the bytes are the tensors as they lie in memory; of a command the text is all. Frames go over
the pipe that is a follower's standard input, so an idle follower waits in a read, which has no
timeout and ends when rank 0 does, and a command about state comes after the calls that made it.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import fields
from typing import IO

import torch
from torch import Tensor

from workers.engine.native.calls import CALLS, Call
from workers.handoff import messages

_HEAD = struct.Struct("<cII")  # kind; bytes of the text and of the tensors
_CALL, _COMMAND = b"c", b"h"
_DTYPES = {str(dtype): dtype for dtype in (torch.int64, torch.float32, torch.bfloat16)}
_BY_NAME = {call.__name__: call for call in CALLS}

Told = Call | messages.Command


class FrameError(ValueError):
    """Bytes that are no frame."""


def encode(told: Told) -> bytes:
    """A call or a command as one frame."""
    if not isinstance(told, Call):
        text = messages.encode(told)
        return _HEAD.pack(_COMMAND, len(text), 0) + text
    header: dict[str, object] = {"call": type(told).__name__}
    bodies: list[bytes] = []
    for field in fields(told):
        value = getattr(told, field.name)
        if isinstance(value, Tensor):
            header[field.name] = [str(value.dtype), list(value.shape)]
            flat = value.detach().cpu().contiguous().flatten()
            bodies.append(flat.view(torch.uint8).numpy().tobytes())
        else:
            header[field.name] = value
    text = json.dumps(header, separators=(",", ":")).encode()
    body = b"".join(bodies)
    return _HEAD.pack(_CALL, len(text), len(body)) + text + body


def read_frame(stream: IO[bytes]) -> Told | None:
    """The next call or command; None at the end of the stream.

    Raises:
        FrameError: the stream ends in the middle of a frame, or holds something else.
    """
    head = stream.read(_HEAD.size)
    if not head:
        return None
    if len(head) < _HEAD.size:
        raise FrameError("the stream ends within a frame")
    kind, text_bytes, body_bytes = _HEAD.unpack(head)
    text, body = stream.read(text_bytes), stream.read(body_bytes)
    if len(text) < text_bytes or len(body) < body_bytes:
        raise FrameError("the stream ends within a frame")
    try:
        if kind == _CALL:
            return _call(json.loads(text), body)
        if kind == _COMMAND and not body:
            return messages.decode_command(text)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise FrameError(f"not a call or command: {error}") from error
    raise FrameError(f"frames of kind {kind!r} with {body_bytes} bytes are unknown")


def _call(header: dict[str, object], body: bytes) -> Call:
    values: dict[str, object] = {}
    kind = _BY_NAME[str(header.pop("call"))]
    offset = 0
    for name, value in header.items():
        if isinstance(value, list):
            dtype, shape = _DTYPES[value[0]], value[1]
            length = math.prod(shape) * dtype.itemsize
            part = bytearray(body[offset : offset + length])
            flat = torch.frombuffer(part, dtype=dtype) if part else torch.empty(0, dtype=dtype)
            values[name] = flat.view(shape)
            offset += length
        else:
            values[name] = value
    if offset != len(body):
        raise ValueError(f"{len(body) - offset} bytes too many")
    return kind(**values)  # type: ignore[arg-type]  # wrong fields raise TypeError
