"""What a client sends becomes a request that can be run, or an error that names what is wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from protos.tandem.v1 import common_pb2
from protos.tandem.v1.common_pb2 import ReasonCode
from router.config import PriorityClass
from router.core.reasons import WELL, reason_name
from router.errors import RequestError, presentation
from router.requests import ClientRequest, GenerationRequest
from router.text.text_model import GenerationDefaults, load_text_model
from router.validation import ServedModel, validate
from tests.unit.router.tiny_model import write_tiny_model

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
    assert (sampling.min_p, sampling.repetition_penalty) == (0.0, 1.0)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.0, 0.0)
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
        min_p=0.5,
        repetition_penalty=2.0,
        presence_penalty=-2.0,
        frequency_penalty=1.0,
        logprobs=True,
        top_logprobs=20,
        seed=-1,
        stop_token_ids=(9,),
        ignore_eos=True,
        deadline_ms=50,
        priority_class="batch",
    )
    sampling = request.sampling
    assert request.request_id == "mine"
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (17, 0.0, 0.25)
    assert (sampling.min_p, sampling.repetition_penalty) == (0.5, 2.0)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (-2.0, 1.0)
    assert (sampling.logprobs, sampling.top_logprobs) == (True, 20)
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
        ({"min_p": 1.1}, "min_p", common_pb2.REASON_INVALID_ARGUMENT),
        ({"min_p": float("nan")}, "min_p", common_pb2.REASON_INVALID_ARGUMENT),
        ({"repetition_penalty": 0.0}, "repetition_penalty", common_pb2.REASON_INVALID_ARGUMENT),
        ({"presence_penalty": 2.1}, "presence_penalty", common_pb2.REASON_INVALID_ARGUMENT),
        ({"frequency_penalty": -2.1}, "frequency_penalty", common_pb2.REASON_INVALID_ARGUMENT),
        (
            {"logprobs": True, "top_logprobs": 21},
            "top_logprobs",
            common_pb2.REASON_INVALID_ARGUMENT,
        ),
        ({"top_logprobs": 1}, "top_logprobs", common_pb2.REASON_INVALID_ARGUMENT),
        (
            {"grammar": common_pb2.Grammar(json_object=True)},
            "grammar",
            common_pb2.REASON_INVALID_ARGUMENT,
        ),
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


def with_text(tmp_path: Path) -> ServedModel:
    return replace(MODEL, text=load_text_model(write_tiny_model(tmp_path)))


@pytest.mark.parametrize(
    "grammar",
    [
        common_pb2.Grammar(json_object=True),
        common_pb2.Grammar(regex="a|b"),
        common_pb2.Grammar(json_schema='{"type": "null"}'),
    ],
)
async def test_the_form_of_an_answer_is_passed_on(
    tmp_path: Path, grammar: common_pb2.Grammar
) -> None:
    request = await check(with_text(tmp_path), grammar=grammar)
    assert request.sampling.grammar == grammar
    assert not (await check()).sampling.HasField("grammar")


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        (common_pb2.Grammar(), "says no form"),
        (common_pb2.Grammar(json_object=False), "says no form"),
        (common_pb2.Grammar(regex=""), "0 characters"),
        (common_pb2.Grammar(regex="a" * 5000), "5000 characters; use 1 to 4096"),
        (common_pb2.Grammar(json_schema="{"), "is not JSON"),
        (common_pb2.Grammar(json_schema="[" * 20_000), "is not JSON"),
        (common_pb2.Grammar(json_schema="[]"), "is a list; give an object"),
        (common_pb2.Grammar(json_schema=" " * 70_000), "70000 characters"),
    ],
)
async def test_a_form_that_nobody_could_follow_is_refused(
    tmp_path: Path, grammar: common_pb2.Grammar, message: str
) -> None:
    with pytest.raises(RequestError, match=message) as error:
        await check(with_text(tmp_path), grammar=grammar, grammar_field="response_format")
    assert error.value.field == "response_format"


async def test_a_form_needs_a_stop_token_to_end_with(tmp_path: Path) -> None:
    model, grammar = with_text(tmp_path), common_pb2.Grammar(json_object=True)
    with pytest.raises(RequestError, match="leave ignore_eos out"):
        await check(model, grammar=grammar, ignore_eos=True)
    await check(model, grammar=grammar, ignore_eos=True, stop_token_ids=(3,))


async def test_limits_that_are_not_known_are_not_checked() -> None:
    unknown = replace(MODEL, max_model_tokens=0, vocab_size=0)
    assert (await check(unknown, prompt=[5000])).sampling.max_tokens == 1


def test_every_reason_that_is_no_good_end_has_a_presentation() -> None:
    for reason in common_pb2.ReasonCode.values():
        told = presentation(reason)
        if reason not in WELL:
            assert told.http_status >= 400, reason_name(reason)
