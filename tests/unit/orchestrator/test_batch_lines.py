"""Lines of a batch: what is accepted, what is refused and how, and what comes out."""

from __future__ import annotations

import json

import pytest

from orchestrator.batch.lines import BatchAnswer, LineError, failed, parse_line
from protos.tandem.v1 import common_pb2
from router.core.tokens import TokenLogprob


def test_a_full_line_becomes_a_request() -> None:
    line = parse_line(
        3,
        b'{"id": "a", "token_ids": [1, 2], "max_tokens": 32, "temperature": 0, "seed": 7, '
        b'"ignore_eos": true}',
    )
    request = line.request()
    assert (line.id, list(request.prompt), request.prompt_field) == ("a", [1, 2], "token_ids")
    assert (request.max_tokens, request.temperature, request.seed) == (32, 0.0, 7)
    assert request.ignore_eos
    assert request.logprobs


def test_a_line_is_greedy_and_named_by_its_number_unless_it_says_otherwise() -> None:
    line = parse_line(4, b'{"text": "x"}')
    assert (line.id, line.temperature, line.seed, line.ignore_eos) == ("4", 0.0, 0, False)
    assert line.request().prompt == "x"


def test_a_line_may_shape_its_answer() -> None:
    line = parse_line(
        1,
        b'{"text": "x", "min_p": 0.1, "repetition_penalty": 1.2, "presence_penalty": 1, '
        b'"frequency_penalty": -1, "top_logprobs": 3, "json_schema": {"type": "null"}}',
    )
    request = line.request()
    assert (request.min_p, request.repetition_penalty) == (0.1, 1.2)
    assert (request.presence_penalty, request.frequency_penalty) == (1.0, -1.0)
    assert request.top_logprobs == 3
    assert request.grammar == common_pb2.Grammar(json_schema='{"type": "null"}')
    assert request.grammar_field == "json_schema"
    assert parse_line(1, b'{"text": "x", "regex": "a+"}').request().grammar == common_pb2.Grammar(
        regex="a+"
    )


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b'{"text": ', "line 2: is not JSON: Expecting value at column 10"),
        (b"\xff", "line 2: is not UTF-8 text"),
        (b"[" * 100_000, "line 2: is not JSON: nested too deeply"),
        (b"[1]", 'line 2: must be a JSON object, such as {"text": ..}'),
        (b"{}", "line 2: give either text or token_ids"),
        (b'{"text": "a", "token_ids": [1]}', "line 2: give either text or token_ids"),
        (
            b'{"text": "a", "max_token": 3}',
            "line 2: unknown key 'max_token'; did you mean 'max_tokens'?",
        ),
        (
            b'{"text": "a", "max_tokens": "3"}',
            "line 2: max_tokens is '3': input should be a valid integer",
        ),
        (
            b'{"token_ids": [1, -1]}',
            "line 2: token_ids.1 is -1: input should be greater than or equal to 0",
        ),
        (
            b'{"text": "a", "regex": "a", "json_object": true}',
            "line 2: give one of json_schema, json_object and regex",
        ),
        (b'{"text": 5}', "line 2: text is 5: input should be a valid string"),
    ],
)
def test_a_bad_line_names_its_number_and_the_field(raw: bytes, message: str) -> None:
    with pytest.raises(LineError) as caught:
        parse_line(2, raw)
    assert caught.value.message == message


def test_the_error_of_a_line_keeps_the_id_it_gave() -> None:
    with pytest.raises(LineError) as caught:
        parse_line(2, b'{"id": "mine", "text": 5}')
    assert json.loads(failed(caught.value).to_json()) == {
        "id": "mine",
        "token_ids": [],
        "text": "",
        "finish_reason": "error",
        "logprobs": [],
        "error": "line 2: text is 5: input should be a valid string",
    }


def test_an_answer_is_one_line_without_an_error_field() -> None:
    logprobs = (TokenLogprob(-0.5), TokenLogprob(-1.0))
    text = BatchAnswer("a", (1, 2), "zwei\nZeilen ü", "length", logprobs).to_json()
    assert "\n" not in text
    assert json.loads(text) == {
        "id": "a",
        "token_ids": [1, 2],
        "text": "zwei\nZeilen ü",
        "finish_reason": "length",
        "logprobs": [-0.5, -1.0],
    }


def test_alternatives_are_written_when_a_line_asked_for_them() -> None:
    logprobs = (TokenLogprob(-0.5, ((1, -0.5), (7, -1.5))),)
    text = BatchAnswer("a", (1,), "b", "stop", logprobs, with_top_logprobs=True).to_json()
    assert json.loads(text)["logprobs"] == [-0.5]
    assert json.loads(text)["top_logprobs"] == [
        [{"token_id": 1, "logprob": -0.5}, {"token_id": 7, "logprob": -1.5}]
    ]
