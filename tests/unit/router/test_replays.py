"""Kept answers are found by id, for a while, within bounds."""

from __future__ import annotations

from protos.tandem.v1 import common_pb2
from router.outbox import Outbox
from router.replays import Replays, content_of
from router.requests import GenerationRequest


def outbox(tokens: int) -> Outbox:
    box = Outbox(None, stops_on_text=False, keeps=True)
    box.push(list(range(tokens)), (), 0.0)
    return box


def test_an_answer_is_found_until_its_time_is_over() -> None:
    replays, box = Replays(window_s=10.0, most_tokens=100), outbox(5)
    replays.keep("a", b"x", box, now_s=0.0)
    assert replays.find("a", 9.9) == (b"x", box)
    assert replays.find("b", 9.9) is None
    assert replays.find("a", 10.0) is None
    assert len(replays) == 0


def test_the_oldest_answers_give_way_to_new_ones() -> None:
    replays = Replays(window_s=1e9, most_tokens=100)
    for number in range(30):
        replays.keep(f"r{number}", b"", outbox(10), float(number))
    assert len(replays) == 10
    assert replays.find("r19", 30.0) is None
    assert replays.find("r20", 30.0) is not None
    replays.keep("r20", b"", outbox(10), 31.0)
    assert len(replays) == 10


def test_content_is_all_that_shapes_an_answer() -> None:
    sampling = common_pb2.SamplingParams(max_tokens=4, seed=9)
    request = GenerationRequest("a", [3, 4], sampling)
    same = GenerationRequest("b", (3, 4), common_pb2.SamplingParams(max_tokens=4, seed=9))
    assert content_of(request) == content_of(same)
    others = [
        GenerationRequest("a", [3, 5], sampling),
        GenerationRequest("a", [3, 4], sampling, stop=("x",)),
        GenerationRequest("a", [3, 4], common_pb2.SamplingParams(max_tokens=5, seed=9)),
    ]
    assert content_of(request) not in [content_of(other) for other in others]
