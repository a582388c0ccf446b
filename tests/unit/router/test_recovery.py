"""What a failing worker had goes on elsewhere: from the tokens made so far, and not for ever."""

from __future__ import annotations

import gc

import pytest

from protos.tandem.v1 import common_pb2
from router.core.events import (
    CreditsChanged,
    Ended,
    PrefillDone,
    RequestArrived,
    Reserved,
    StateArrived,
    Tick,
    WorkerJoined,
    WorkerLost,
)
from router.core.instructions import (
    Finish,
    Instruction,
    SendCancel,
    SendPrefill,
    SendRenew,
    SendReserve,
)
from router.core.reasons import Reason
from router.core.request import Cause, Request, State
from tests.unit.router.lifecycle_bench import (
    HANDOFF,
    LENGTH,
    TICKET,
    Bench,
    deliver,
    the_finish,
    tokens,
)


def _reasons(bench: Bench) -> list[Reason]:
    story = bench.core.explain("r")
    assert story is not None
    return [step.reason for step in story.transitions]


def test_a_lost_decode_worker_s_answer_goes_on_from_the_tokens_that_were_sent() -> None:
    bench = Bench("p", "d", "d2")
    bench.decoding()
    bench.feed(tokens("d", 1, 41, 42))
    assert bench.feed(WorkerLost("d", "gone")) == [SendReserve("d2", 2, "r", (40, 41, 42))]
    assert bench.feed(Reserved("d2", 2, TICKET)) == [SendPrefill("p", 2, "r", TICKET, (40, 41, 42))]
    # Prefill has nothing to say this time: the tokens are known.
    assert bench.feed(PrefillDone("p", 2, 1.0, HANDOFF)) == []
    bench.feed(StateArrived("d2", 2))
    assert bench.feed(tokens("d2", 3, 43, 44, handle=2)) == [deliver(3, 43, 44)]
    finish = the_finish(bench.feed(Ended("d2", 2, LENGTH)))
    assert (finish.reason, finish.report.retries) == (LENGTH, 1)
    assert common_pb2.REASON_WORKER_LOST in _reasons(bench)
    assert bench.nothing_is_held()


def test_late_words_of_the_first_attempt_change_nothing() -> None:
    bench = Bench("d", "d2")
    bench.request()
    bench.feed(tokens("d", 0, 40))
    bench.feed(Ended("d", 1, common_pb2.REASON_ENGINE_ERROR, "broken"))
    assert bench.feed(tokens("d", 1, 99)) == [SendCancel("d", 1, common_pb2.REASON_CANCELLED)]
    assert bench.feed(Ended("d", 1, LENGTH)) == []
    assert bench.feed(tokens("d2", 1, 41, handle=2)) == [deliver(1, 41)]


def test_tokens_that_waited_for_the_first_one_are_made_anew() -> None:
    bench = Bench("p", "d", "d2")
    bench.prefilling()
    bench.feed(StateArrived("d", 1))
    assert bench.feed(tokens("d", 1, 41)) == []
    out = bench.feed(WorkerLost("p"))
    assert out == [
        SendCancel("d", 1, common_pb2.REASON_WORKER_LOST),
        SendPrefill("d2", 2, "r", None),
    ]
    assert bench.feed(tokens("d2", 0, 40, 41, handle=2)) == [deliver(0, 40, 41)]


@pytest.mark.parametrize(
    "reason",
    [
        common_pb2.REASON_TRANSFER_FAILED,
        common_pb2.REASON_LEASE_EXPIRED,
        common_pb2.REASON_CHECKSUM_MISMATCH,
        common_pb2.REASON_MANIFEST_MISMATCH,
        common_pb2.REASON_ENGINE_ERROR,
        common_pb2.REASON_UNSPECIFIED,
    ],
)
def test_what_a_worker_or_the_way_to_it_did_wrong_is_tried_again(reason: Reason) -> None:
    bench = Bench("p", "d", "d2")
    bench.prefilling()
    bench.feed(tokens("p", 0, 40))
    out = bench.feed(Ended("d", 1, reason, "scripted"))
    assert out[0] == SendCancel("p", 1, reason or common_pb2.REASON_ENGINE_ERROR)
    assert out[1] == SendReserve("d2", 2, "r", (40,))


def test_what_the_request_did_wrong_is_not_tried_again() -> None:
    bench = Bench("d", "d2")
    bench.request()
    out = bench.feed(Ended("d", 1, common_pb2.REASON_INVALID_ARGUMENT, "no such grammar"))
    assert the_finish(out).reason == common_pb2.REASON_INVALID_ARGUMENT


def test_retries_are_bounded_and_the_last_failure_is_told() -> None:
    bench = Bench("d", "d2", max_retries=2, breaker_failures=99)
    bench.request()
    out: list[Instruction] = []
    for handle in (1, 2, 3):
        worker = bench.core.requests["r"].decode_worker
        out = bench.feed(Ended(worker, handle, common_pb2.REASON_ENGINE_ERROR, "broken"))
    finish = the_finish(out)
    assert finish.reason == common_pb2.REASON_ENGINE_ERROR
    assert finish.detail == "attempt 3 failed too: broken"
    assert finish.report.retries == 2


def test_a_retry_goes_elsewhere_if_there_is_an_elsewhere() -> None:
    bench = Bench("d", "d2")
    bench.request()
    bench.request("other")  # d2 is no less loaded than d
    bench.feed(Ended("d", 1, common_pb2.REASON_ENGINE_ERROR))
    assert bench.core.requests["r"].decode_worker == "d2"
    bench = Bench("d")
    bench.request()
    bench.feed(Ended("d", 1, common_pb2.REASON_ENGINE_ERROR))
    assert bench.core.requests["r"].decode_worker == "d"


def test_a_worker_that_drains_is_no_failure() -> None:
    bench = Bench("d", "d2", max_retries=0)
    bench.request()
    out = bench.feed(Ended("d", 1, common_pb2.REASON_DRAINING))
    assert out == [SendPrefill("d2", 2, "r", None)]
    assert bench.core.requests["r"].retries == 0


def test_those_that_wait_go_on_when_a_decode_worker_comes_back() -> None:
    bench = Bench("d", orphan_grace_s=30.0)
    bench.request()
    bench.feed(tokens("d", 0, 40))
    assert bench.feed(WorkerLost("d")) == []
    assert bench.core.requests["r"].attempt is None
    assert bench.due_s == bench.now_s + 30.0
    finish = the_finish(bench.request("late"))
    assert finish.reason == common_pb2.REASON_NO_WORKERS, "newcomers are told at once"
    bench.feed(Tick(), 29.0)
    bench.feed(WorkerJoined("d9", "decode", "v"))
    assert bench.feed(CreditsChanged("d9", 2, 100, 100)) == [SendPrefill("d9", 2, "r", None, (40,))]
    assert bench.due_s is None


def test_those_that_wait_do_not_wait_for_ever() -> None:
    bench = Bench("d", slots=1, orphan_grace_s=30.0)
    bench.request()
    bench.request("never ran")
    bench.feed(WorkerLost("d", "gone"))
    out = bench.feed(Tick(), 30.0)
    ends = {item.request_id: item for item in out if isinstance(item, Finish)}
    assert ends["r"].reason == common_pb2.REASON_WORKER_LOST
    assert ends["r"].detail == ("worker d was lost: gone; no decode worker came back within 30 s")
    assert ends["never ran"].reason == common_pb2.REASON_NO_WORKERS


def test_an_answer_never_goes_on_with_other_weights() -> None:
    bench = Bench("d")
    bench.join("d2", version="w")
    bench.request()
    bench.feed(tokens("d", 0, 40))
    finish = the_finish(bench.feed(WorkerLost("d")))
    assert "model version v" in finish.detail
    bench = Bench("d")
    bench.join("d2", version="w")
    bench.request()
    assert bench.feed(WorkerLost("d")) == [SendPrefill("d2", 2, "r", None)], "nothing was sent yet"


def test_an_end_that_was_not_heard_is_asked_for_again() -> None:
    bench = Bench("d", "d2")
    bench.request()
    bench.feed(tokens("d", 0, 40, 41, 42, 43, 44))
    out = bench.feed(WorkerLost("d"))
    assert out == [SendPrefill("d2", 2, "r", None, (40, 41, 42, 43, 44))]
    assert the_finish(bench.feed(Ended("d2", 2, LENGTH))).reason == LENGTH


def test_an_end_of_a_reservation_that_prefill_was_not_told_of_is_the_end() -> None:
    bench = Bench("p", "d", "d2")
    bench.decoding()
    bench.feed(tokens("d", 1, 41))
    bench.feed(WorkerLost("d"))
    out = bench.feed(Ended("d2", 2, common_pb2.REASON_STOP_TOKEN))
    assert the_finish(out).reason == common_pb2.REASON_STOP_TOKEN
    assert bench.nothing_is_held()


def test_a_lease_is_renewed_until_the_state_has_come() -> None:
    bench = Bench("p", "d")
    bench.request()
    bench.feed(Reserved("d", 1, TICKET, lease_s=10.0))
    assert (bench.due_s or 0.0) - bench.now_s == 5.0
    assert bench.feed(Tick(), 5.0) == [SendRenew("d", 1)]
    assert bench.feed(Tick(), 5.0) == [SendRenew("d", 1)]
    bench.feed(tokens("p", 0, 40))
    bench.feed(PrefillDone("p", 1, 1.0, HANDOFF))
    bench.feed(StateArrived("d", 1))
    assert bench.due_s is None
    assert bench.feed(Tick(), 5.0) == []


def test_a_worker_that_fails_again_and_again_is_left_alone_for_a_while() -> None:
    bench = Bench("d", max_retries=9, breaker_failures=3, breaker_first_s=2.0)
    bench.request()
    for handle in (1, 2, 3):
        bench.feed(Ended("d", handle, common_pb2.REASON_ENGINE_ERROR))
    assert bench.due_s == bench.now_s + 2.0
    assert bench.feed(Tick(), 2.0) == [SendPrefill("d", 4, "r", None)]
    assert bench.request("second") == [], "one at a time until it has done something right"
    out = bench.feed(tokens("d", 0, 40, handle=4))
    assert SendPrefill("d", 5, "second", None) in out


def test_a_worker_lost_and_found_keeps_its_breaker() -> None:
    bench = Bench("d", max_retries=9, breaker_failures=3, breaker_first_s=2.0)
    bench.request()
    for handle in (1, 2, 3):
        bench.feed(Ended("d", handle, common_pb2.REASON_ENGINE_ERROR))
    bench.join("d")
    assert bench.state() is State.QUEUED
    assert bench.feed(Tick(), 2.0) == [SendPrefill("d", 4, "r", None)]


def test_the_story_tells_where_it_ran_what_was_weighed_and_what_went_wrong() -> None:
    bench = Bench("p", "d", "d2")
    bench.decoding()
    bench.feed(WorkerLost("d", "gone"))
    story = bench.core.explain("r")
    assert story is not None
    assert story.retries == 1
    assert [one.chosen.decode for one in story.decisions] == ["d", "d2"]
    assert {one.decode for one in story.decisions[0].candidates} == {"d", "d2"}
    assert Cause.RETRIED in [step.cause for step in story.transitions]
    text = "\n".join(story.lines())
    assert "worker d was lost: gone" in text
    assert "candidate p -> d2" in text
    assert "REASON_WORKER_LOST" in text


def test_a_story_is_bounded_however_often_a_request_is_refused() -> None:
    bench = Bench("d", slots=9)
    bench.request("first")
    bench.feed(RequestArrived("r", 10, 5))
    for handle in range(2, 2 + 12):
        bench.feed(Ended("d", handle, common_pb2.REASON_OUT_OF_CAPACITY))
        bench.feed(CreditsChanged("d", 8, 80, 100, 9, work_seen=handle))
    story = bench.core.explain("r")
    assert story is not None
    assert len(story.decisions) <= 8
    assert story.retries == 0
    assert story.transitions[0].cause is Cause.ARRIVED


def test_ended_requests_leave_no_garbage_behind() -> None:
    bench = Bench("p", "d", history=0)
    gc.collect()
    gc.disable()
    try:
        bench.decoding()
        requests = [one for one in gc.get_objects() if type(one) is Request]
        assert bench.core.requests["r"] in requests
        count = len(requests)
        del requests
        bench.feed(Ended("d", 1, LENGTH))
        left = [one for one in gc.get_objects() if type(one) is Request]
        assert len(left) == count - 1, "only a collection would find it"
    finally:
        gc.enable()
