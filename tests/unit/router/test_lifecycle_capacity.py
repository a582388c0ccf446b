"""Who is taken when, by which worker, and what happens when nobody can take a request."""

from __future__ import annotations

from protos.tandem.v1 import common_pb2
from router.core.events import (
    CreditsChanged,
    Ended,
    PrefillDone,
    RequestArrived,
    Reserved,
    ShutDown,
    Tick,
)
from router.core.instructions import (
    Finish,
    SendCancel,
    SendPrefill,
    SendReserve,
)
from router.core.lifecycle import Lifecycle
from router.core.policy import Policy
from router.core.request import State
from tests.unit.router.lifecycle_bench import (
    HANDOFF,
    LENGTH,
    TICKET,
    Bench,
    deliver,
    the_finish,
    tokens,
)


def test_without_decode_workers_a_request_fails_at_once() -> None:
    finish = the_finish(Bench("p").request())
    assert finish.reason == common_pb2.REASON_NO_WORKERS


def test_a_full_queue_refuses_and_the_strictest_class_goes_first() -> None:
    bench = Bench("d", queue_limit=3, slots=1)
    bench.request("running")
    bench.request("batch", class_rank=1)
    bench.request("first")
    bench.request("second")
    finish = the_finish(bench.request("late", class_rank=1))
    assert (finish.request_id, finish.reason) == ("late", common_pb2.REASON_QUEUE_FULL)
    order = []
    for handle in range(1, 4):
        out = bench.feed(Ended("d", handle, common_pb2.REASON_INVALID_ARGUMENT))
        order += [item.request_id for item in out if isinstance(item, SendPrefill)]
    assert order == ["first", "second", "batch"]


def test_a_request_that_no_worker_can_hold_is_told_so() -> None:
    bench = Bench("d")
    finish = the_finish(bench.request(max_tokens=91))
    assert finish.reason == common_pb2.REASON_PROMPT_TOO_LONG
    assert "max_tokens 91" in finish.detail


def test_tokens_are_credits_too() -> None:
    bench = Bench("d", slots=9)
    assert bench.request("a", max_tokens=50) != []
    assert bench.request("b", max_tokens=50) == []
    out = bench.feed(Ended("d", 1, common_pb2.REASON_INVALID_ARGUMENT))
    assert SendPrefill("d", 2, "b", None) in out


def test_a_worker_that_refuses_is_left_alone_until_it_has_news() -> None:
    bench = Bench("d", slots=3)
    bench.request("first")
    bench.request()
    refusal = Ended("d", 2, common_pb2.REASON_OUT_OF_CAPACITY, "no block is free")
    assert bench.feed(refusal) == []
    assert bench.state() is State.QUEUED
    # A new attempt has a new handle, and the old one means nothing any more.
    assert bench.feed(CreditsChanged("d", 2, 90, 100)) == [SendPrefill("d", 3, "r", None)]
    assert bench.feed(tokens("d", 0, 40, handle=3)) == [deliver(0, 40)]


def test_a_prefill_worker_that_refuses_gives_the_reservation_back() -> None:
    bench = Bench("p", "p2", "d", max_retries=0)
    bench.request("first")
    bench.request()
    bench.feed(Reserved("d", 1, TICKET))
    bench.feed(Reserved("d", 2, TICKET))
    assert bench.core.requests["r"].prefill_worker == "p2"
    bench.request("second")
    out = bench.feed(Ended("p2", 2, common_pb2.REASON_OUT_OF_CAPACITY))
    # Nothing else of ours is on p2, so nothing there will come free.
    assert the_finish(out).reason == common_pb2.REASON_OUT_OF_CAPACITY
    assert SendCancel("d", 2, common_pb2.REASON_OUT_OF_CAPACITY) in out


def test_a_worker_that_keeps_refusing_though_idle_fails_the_request() -> None:
    bench = Bench("d")
    bench.request()
    for handle in (1, 2, 3):
        refusal = Ended("d", handle, common_pb2.REASON_OUT_OF_CAPACITY)
        assert bench.feed(refusal) == [SendPrefill("d", handle + 1, "r", None)]
        bench.feed(Tick(), 60.0)
    finish = the_finish(bench.feed(Ended("d", 4, common_pb2.REASON_OUT_OF_CAPACITY)))
    assert finish.reason == common_pb2.REASON_OUT_OF_CAPACITY


def test_a_worker_that_works_on_something_unknown_is_told_once() -> None:
    bench = Bench("d")
    cancel = SendCancel("d", 99, common_pb2.REASON_CANCELLED)
    assert bench.feed(tokens("d", 0, 1, handle=99)) == [cancel]
    assert bench.feed(tokens("d", 1, 2, handle=99)) == []
    assert bench.feed(Reserved("d", 98, TICKET)) == [
        SendCancel("d", 98, common_pb2.REASON_CANCELLED)
    ]


def test_late_ends_of_unknown_handles_are_ignored() -> None:
    bench = Bench("d")
    assert bench.feed(Ended("d", 99, LENGTH)) == []
    assert bench.feed(PrefillDone("d", 99)) == []
    assert bench.feed(CreditsChanged("stranger", 1, 1, 1)) == []


def test_a_handle_means_nothing_from_another_worker() -> None:
    bench = Bench("p", "d", "d2")
    bench.decoding()
    assert bench.feed(tokens("d2", 1, 41)) == [SendCancel("d2", 1, common_pb2.REASON_CANCELLED)]
    assert bench.feed(Ended("d2", 1, LENGTH)) == []
    assert bench.state() is State.DECODING


def test_shutting_down_ends_everything_and_takes_nothing() -> None:
    bench = Bench("d", slots=1)
    bench.request("running")
    bench.request("waiting")
    out = bench.feed(ShutDown())
    assert [item.reason for item in out if isinstance(item, Finish)] == [
        common_pb2.REASON_SHUTTING_DOWN
    ] * 2
    assert the_finish(bench.request("late")).reason == common_pb2.REASON_SHUTTING_DOWN


def test_the_pair_is_the_least_loaded_and_ties_go_by_name() -> None:
    bench = Bench("p2", "p1", "d2", "d1", slots=4)
    placed = []
    for name in ("a", "b", "c"):
        bench.request(name)
        request = bench.core.requests[name]
        placed.append((request.prefill_worker, request.decode_worker))
    assert placed == [("p1", "d1"), ("p2", "d2"), ("p1", "d1")]


def test_decode_is_not_reserved_while_prefill_is_full() -> None:
    bench = Bench("d", slots=4)
    bench.join("p", slots=1)
    assert bench.request("a") == [SendReserve("d", 1, "a")]
    assert bench.request() == []
    bench.feed(Reserved("d", 1, TICKET))
    bench.feed(tokens("p", 0, 40))
    assert bench.feed(PrefillDone("p", 1, 1.0, HANDOFF)) == [SendReserve("d", 2, "r")]


def test_history_is_bounded() -> None:
    core = Lifecycle(Policy(history=3))
    for number in range(10):
        core.handle(RequestArrived(f"r{number}", 1, 1), 0.0)
    assert core.explain("r6") is None
    assert core.explain("r7") is not None
