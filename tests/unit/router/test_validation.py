"""What a client sends becomes a request that can be run, or an error that names what is wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest

from protos.tandem.v1 import common_pb2
from protos.tandem.v1.common_pb2 import ReasonCode
from router.config import PriorityClass
from router.core.reasons import WELL, reason_name
from router.errors import RequestError, presentation
from router.requests import ClientRequest, GenerationRequest
from router.text.text_model import GenerationDefaults
from router.validation import ServedModel, validate

MODEL = ServedModel(
    name="tiny",
    max_model_tokens=20,
    vocab_size=100,
    defaults=GenerationDefaults(eos_token_ids=frozenset({2}), temperature=0.5, top_k=7),
    text=None,
)
CLASSES = (PriorityClass("interactive", 500, 40), PriorityClass("batch", 9999, 200))


async def check(served: ServedModel = MODEL, /, **fields: object) -> GenerationRequest:
    client = replace(ClientRequest([1, 2, 3]), **fields)  # type: ignore[arg-type]
    return await validate(client, served, CLASSES)


async def test_what_is_left_out_takes_the_defaults() -> None:
    request = await check()
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 1.0, 7)
    assert list(sampling.stop_token_ids) == [2]
    assert sampling.max_tokens == 17
    assert (request.class_rank, request.deadline_ms) == (0, None)
    other = await check()
    assert request.request_id != other.request_id
    assert sampling.seed != other.sampling.seed


async def test_what_is_stated_is_kept() -> None:
    request = await check(
        request_id="mine",
        model="tiny",
        max_tokens=17,
        temperature=0.0,
        top_p=0.25,
        top_k=0,
        seed=-1,
        stop_token_ids=(9,),
        ignore_eos=True,
        deadline_ms=50,
        priority_class="batch",
    )
    sampling = request.sampling
    assert request.request_id == "mine"
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (17, 0.0, 0.25)
    assert sampling.seed == 2**64 - 1
    assert list(sampling.stop_token_ids) == [9]
    assert (request.class_rank, request.deadline_ms) == (1, 50)


async def test_the_front_end_may_have_its_own_default_length() -> None:
    assert (await check(default_max_tokens=16)).sampling.max_tokens == 16
    assert (await check(default_max_tokens=99)).sampling.max_tokens == 17


@pytest.mark.parametrize(
    ("fields", "field", "reason"),
    [
        ({"prompt": []}, "prompt", common_pb2.REASON_EMPTY_PROMPT),
        ({"prompt": [1] * 20}, "prompt", common_pb2.REASON_PROMPT_TOO_LONG),
        ({"prompt": [100]}, "prompt", common_pb2.REASON_INVALID_ARGUMENT),
        ({"prompt": [-1]}, "prompt", common_pb2.REASON_INVALID_ARGUMENT),
        ({"prompt": "text"}, "prompt", common_pb2.REASON_INVALID_ARGUMENT),
        ({"model": "huge"}, "model", common_pb2.REASON_UNKNOWN_MODEL),
        ({"max_tokens": 18}, "max_tokens", common_pb2.REASON_PROMPT_TOO_LONG),
        ({"max_tokens": 0}, "max_tokens", common_pb2.REASON_INVALID_ARGUMENT),
        ({"temperature": -0.1}, "temperature", common_pb2.REASON_INVALID_ARGUMENT),
        ({"temperature": float("nan")}, "temperature", common_pb2.REASON_INVALID_ARGUMENT),
        ({"top_p": 1.1}, "top_p", common_pb2.REASON_INVALID_ARGUMENT),
        ({"top_k": -1}, "top_k", common_pb2.REASON_INVALID_ARGUMENT),
        ({"seed": 2**64}, "seed", common_pb2.REASON_INVALID_ARGUMENT),
        ({"stop": ["x"] * 17}, "stop", common_pb2.REASON_INVALID_ARGUMENT),
        ({"stop": ["x"]}, "stop", common_pb2.REASON_INVALID_ARGUMENT),
        ({"stop_token_ids": [100]}, "stop_token_ids", common_pb2.REASON_INVALID_ARGUMENT),
        ({"priority_class": "vip"}, "priority_class", common_pb2.REASON_INVALID_ARGUMENT),
        ({"deadline_ms": -5}, "deadline_ms", common_pb2.REASON_INVALID_ARGUMENT),
        ({"request_id": "x" * 200}, "request_id", common_pb2.REASON_INVALID_ARGUMENT),
    ],
)
async def test_what_is_wrong_is_named(
    fields: dict[str, object], field: str, reason: ReasonCode.ValueType
) -> None:
    with pytest.raises(RequestError) as error:
        await check(**fields)
    assert (error.value.field, error.value.reason) == (field, reason)
    assert error.value.message.startswith(f"{field}: ")


async def test_limits_that_are_not_known_are_not_checked() -> None:
    unknown = replace(MODEL, max_model_tokens=0, vocab_size=0)
    assert (await check(unknown, prompt=[5000])).sampling.max_tokens == 1


def test_every_reason_that_is_no_good_end_has_a_presentation() -> None:
    for reason in common_pb2.ReasonCode.values():
        told = presentation(reason)
        if reason not in WELL:
            assert told.http_status >= 400, reason_name(reason)
