"""Events of OpenAI's streams."""

from __future__ import annotations

import json

import pytest

from loadgen.clients.events import Piece, piece_of


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ({"choices": [{"text": "ab", "finish_reason": None}], "usage": None}, Piece("ab")),
        ({"choices": [{"delta": {"content": "ab"}, "finish_reason": None}]}, Piece("ab")),
        ({"choices": [{"delta": {"role": "assistant", "content": ""}}]}, Piece()),
        ({"choices": [{"delta": {"reasoning_content": "hm"}}]}, Piece("hm")),
        ({"choices": [{"delta": {}, "finish_reason": "length"}]}, Piece(finish="length")),
        (
            {
                "choices": [],
                "usage": {
                    "completion_tokens": 5,
                    "prompt_tokens": 9,
                    "prompt_tokens_details": {"cached_tokens": 4},
                },
            },
            Piece(completion_tokens=5, prompt_tokens=9, cached_tokens=4),
        ),
        (
            {"error": {"message": "full", "type": "rate_limit_error", "code": None}},
            Piece(error="full", error_kind="rate_limit_error"),
        ),
    ],
)
def test_an_event_is_read(event: dict[str, object], expected: Piece) -> None:
    assert piece_of(json.dumps(event).encode()) == expected


def test_the_report_of_tandem_brings_its_speculation() -> None:
    event = {
        "choices": [{"text": "", "finish_reason": "length"}],
        "tandem": {"speculation": {"steps": 4, "drafted": [4, 3], "accepted": [3, 1]}},
    }
    found = piece_of(json.dumps(event).encode()).speculation
    assert found is not None
    assert (found.steps, found.drafted, found.accepted) == (4, [4, 3], [3, 1])
    assert dict(found.lengths) == {1: 1, 2: 2, 3: 1}


@pytest.mark.parametrize("data", [b"{", b"[1]", b'"text"', b'{"choices": [3]}'])
def test_what_is_no_event_is_an_error_of_the_stream(data: bytes) -> None:
    assert piece_of(data).error_kind == "bad event"
