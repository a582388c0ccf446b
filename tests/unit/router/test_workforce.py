"""Draining and flipping: nothing is lost, and operators can see when a worker may go."""

from __future__ import annotations

from protos.tandem.v1 import common_pb2
from router.core.events import (
    CreditsChanged,
    Drained,
    DrainRequested,
    Ended,
    Flipped,
    FlipRequested,
)
from router.core.instructions import SendDrain, SendFlip, SendPrefill, SendReserve
from router.core.worker_view import WorkerView
from router.core.workforce import duty
from tests.unit.router.lifecycle_bench import LENGTH, Bench, tokens


def _view(bench: Bench, name: str) -> WorkerView:
    view = bench.core.fleet.get(name)
    assert view is not None
    return view


def test_a_drained_worker_gets_nothing_more_finishes_what_it_has_and_may_go() -> None:
    bench = Bench("d", "d2")
    bench.request("on d")
    assert bench.feed(DrainRequested("d")) == [SendDrain("d")]
    assert duty(_view(bench, "d")) == "draining"
    for number in range(2):
        assert bench.request(f"r{number}")[0].worker_id == "d2"  # type: ignore[union-attr]
    bench.feed(tokens("d", 0, 40))
    bench.feed(Ended("d", 1, LENGTH))
    assert duty(_view(bench, "d")) == "draining", "other routers may have work there"
    bench.feed(Drained("d"))
    assert duty(_view(bench, "d")) == "safe_to_delete"


def test_a_drain_can_be_taken_back() -> None:
    bench = Bench("d")
    bench.feed(DrainRequested("d"))
    assert bench.request() == []
    out = bench.feed(DrainRequested("d", resume=True))
    assert out == [SendDrain("d", resume=True), SendPrefill("d", 1, "r", None)]
    assert duty(_view(bench, "d")) == "serving"


def test_a_worker_that_another_router_drains_gets_nothing_either() -> None:
    bench = Bench("d", "d2")
    bench.feed(CreditsChanged("d", 0, 0, 100, 2, draining=True))
    assert duty(_view(bench, "d")) == "draining"
    assert bench.request()[0] == SendPrefill("d2", 1, "r", None)
    bench.feed(CreditsChanged("d", 2, 100, 100, 2))
    assert duty(_view(bench, "d")) == "serving"


def test_a_flip_drains_first_and_the_worker_then_works_in_its_new_role() -> None:
    bench = Bench("d", "d2")
    bench.request("busy")
    assert bench.feed(FlipRequested("d", "prefill")) == [SendDrain("d")]
    assert duty(_view(bench, "d")) == "flipping"
    bench.feed(tokens("d", 0, 40))
    bench.feed(Ended("d", 1, LENGTH))
    assert bench.feed(Drained("d")) == [SendFlip("d", "prefill")]
    assert bench.request() == [SendPrefill("d2", 2, "r", None)]
    bench.feed(Flipped("d", "prefill"))
    bench.feed(CreditsChanged("d", 2, 100, 100, 2))
    assert duty(_view(bench, "d")) == "serving"
    assert bench.request("next") == [SendReserve("d2", 3, "next")]
    assert bench.core.requests["next"].prefill_worker == "d"
    assert [view.worker_id for view in bench.core.fleet.of_role("decode")] == ["d2"]


def test_a_worker_that_cannot_flip_works_on_in_its_role() -> None:
    bench = Bench("d")
    bench.feed(FlipRequested("d", "prefill"))
    bench.feed(Drained("d"))
    refusal = Flipped("d", "decode", common_pb2.REASON_LAYOUT_MISMATCH, "kvp 2")
    assert bench.feed(refusal) == [SendDrain("d", resume=True)]
    view = _view(bench, "d")
    assert (view.role, view.flip_problem, duty(view)) == ("decode", "kvp 2", "serving")
    assert bench.request() == [SendPrefill("d", 1, "r", None)]


def test_flipping_the_last_decode_worker_keeps_those_that_wait() -> None:
    bench = Bench("p", "d")
    bench.feed(FlipRequested("d", "prefill"))
    assert bench.request() == []
    bench.feed(Drained("d"))
    bench.feed(Flipped("d", "prefill"))
    assert "r" in bench.core.requests
    bench.feed(FlipRequested("p", "decode"))
    bench.feed(Drained("p"))
    bench.feed(Flipped("p", "decode"))
    bench.feed(CreditsChanged("d", 2, 100, 100, 2))
    out = bench.feed(CreditsChanged("p", 2, 100, 100, 2))
    assert out == [SendReserve("p", 1, "r")]


def test_workers_nobody_knows_are_not_drained_or_flipped() -> None:
    bench = Bench("d")
    assert bench.feed(DrainRequested("x")) == []
    assert bench.feed(FlipRequested("x", "prefill")) == []
    assert bench.feed(FlipRequested("d", "decode")) == [], "it has that role"
    assert bench.feed(Drained("x")) == []
    assert bench.feed(Flipped("x", "prefill")) == []
