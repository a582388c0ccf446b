"""Lines of a batch: what is accepted, what is refused and how, and what comes out."""

from __future__ import annotations

import json

import pytest

from orchestrator.batch.lines import BatchAnswer, LineError, failed, parse_line


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
    text = BatchAnswer("a", (1, 2), "zwei\nZeilen ü", "length", (-0.5, -1.0)).to_json()
    assert "\n" not in text
    assert json.loads(text) == {
        "id": "a",
        "token_ids": [1, 2],
        "text": "zwei\nZeilen ü",
        "finish_reason": "length",
        "logprobs": [-0.5, -1.0],
    }
