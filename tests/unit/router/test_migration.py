"""A request leaves a worker that is to be emptied: each path and each failure, on virtual time."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from protos.tandem.v1 import common_pb2
from protos.tandem.v1.inference_pb2 import HandoffReport, SpeculationReport
from router.core.events import (
    CancelRequested,
    CreditsChanged,
    Drained,
    DrainRequested,
    Ended,
    Event,
    FlipRequested,
    LoadChanged,
    Reserved,
    StateArrived,
    Stayed,
    Tick,
    WorkerJoined,
    WorkerLost,
)
from router.core.instructions import (
    Deliver,
    Finish,
    Instruction,
    SendCancel,
    SendDrain,
    SendMigrate,
    SendPrefill,
    SendRenew,
    SendReserve,
)
from router.core.reasons import Reason
from router.core.request import Cause, State
from router.core.workforce import duty
from tests.unit.router.lifecycle_bench import (
    LENGTH,
    TICKET,
    Bench,
    deliver,
    the_finish,
    tokens,
)

MIGRATED = common_pb2.REASON_MIGRATED
DRAINING = common_pb2.REASON_DRAINING
LOST = common_pb2.REASON_WORKER_LOST
FAILED = common_pb2.REASON_TRANSFER_FAILED
CANCELLED = common_pb2.REASON_CANCELLED
STATE = HandoffReport(kv_bytes=900, mamba_bytes=100, transfer_ms=1.0)
MAX_TOKENS = 60


def decoding(*workers: str, **policy: object) -> Bench:
    """Request r, handle 1, decodes on d with token 0 delivered."""
    bench = Bench("d", *workers, **policy)  # type: ignore[arg-type]
    assert bench.request(max_tokens=MAX_TOKENS) == [SendPrefill("d", 1, "r", None)]
    bench.feed(tokens("d", 0, 40))
    assert bench.state() is State.DECODING
    return bench


def leaving(*workers: str, **policy: object) -> Bench:
    """And d is to be emptied: d2 has been asked to set memory aside, under handle 2."""
    bench = decoding("d2", *workers, **policy)
    out = bench.feed(DrainRequested("d"))
    assert out == [SendDrain("d"), SendReserve("d2", 2, "r", (40,), growth_tokens=58)]
    assert bench.state() is State.MIGRATING
    return bench


def told(*workers: str, **policy: object) -> Bench:
    """And d2 has, and d was told."""
    bench = leaving(*workers, **policy)
    assert bench.feed(Reserved("d2", 2, TICKET, 3.0)) == [SendMigrate("d", 1, TICKET)]
    return bench


def reason_of(bench: Bench) -> Reason:
    story = bench.core.explain("r")
    assert story is not None
    return story.transitions[-1].reason


def test_tokens_flow_until_the_state_has_left_and_go_on_without_a_gap() -> None:
    bench = told()
    assert bench.feed(tokens("d", 1, 41, 42)) == [deliver(1, 41, 42)]
    out = bench.feed(Ended("d", 1, MIGRATED, "", SpeculationReport(steps=2), STATE))
    assert out == []
    assert bench.state() is State.MIGRATING
    assert bench.feed(StateArrived("d2", 2, 3)) == []
    assert bench.state() is State.DECODING
    assert bench.feed(tokens("d2", 3, 43, handle=2)) == [deliver(3, 43)]
    assert duty(bench.core.fleet.get("d")) == "draining"  # type: ignore[arg-type]
    bench.feed(Drained("d"))
    assert duty(bench.core.fleet.get("d")) == "safe_to_delete"  # type: ignore[arg-type]
    finish = the_finish(bench.feed(Ended("d2", 2, LENGTH, "", SpeculationReport(steps=5))))
    assert (finish.report.migrations, finish.report.retries) == (1, 0)
    assert finish.report.speculation == SpeculationReport(steps=7)
    assert finish.report.decode_worker == "d2"
    assert bench.nothing_is_held()


def test_what_the_target_says_first_waits_for_the_source_s_last_tokens() -> None:
    bench = told()
    bench.feed(StateArrived("d2", 2, 3))
    assert bench.feed(tokens("d2", 3, 43, handle=2)) == []
    assert bench.feed(tokens("d2", 4, 44, 45, handle=2)) == []
    assert bench.feed(Ended("d2", 2, LENGTH)) == []
    assert bench.feed(tokens("d", 1, 41, 42)) == [deliver(1, 41, 42)]
    out = bench.feed(Ended("d", 1, MIGRATED, handoff=STATE))
    assert out[:2] == [deliver(3, 43), deliver(4, 44, 45)]
    assert the_finish(out).reason == LENGTH
    assert bench.nothing_is_held()


def test_an_answer_that_ends_before_it_has_left_lets_the_target_go() -> None:
    bench = told()
    out = bench.feed(Ended("d", 1, common_pb2.REASON_STOP_TOKEN))
    assert the_finish(out).reason == common_pb2.REASON_STOP_TOKEN
    assert SendCancel("d2", 2, common_pb2.REASON_STOP_TOKEN) in out
    assert bench.feed(Ended("d2", 2, common_pb2.REASON_STOP_TOKEN)) == []
    assert bench.nothing_is_held()


# What fails after d was told, whether the request stays, why, and what is asked of the workers.
_FAILURES: dict[str, tuple[Sequence[Event], bool, Reason, list[Instruction]]] = {
    "the target is lost": ([WorkerLost("d2")], True, LOST, [SendMigrate("d", 1, None)]),
    "the target's lease runs out": (
        [Ended("d2", 2, common_pb2.REASON_LEASE_EXPIRED)],
        True,
        common_pb2.REASON_LEASE_EXPIRED,
        [SendMigrate("d", 1, None)],
    ),
    "the target finds other bytes": (
        [Ended("d2", 2, common_pb2.REASON_CHECKSUM_MISMATCH)],
        True,
        common_pb2.REASON_CHECKSUM_MISMATCH,
        [SendMigrate("d", 1, None)],
    ),
    "the transfer fails": ([Stayed("d", 1, FAILED)], True, FAILED, [SendCancel("d2", 2, FAILED)]),
    "the source has grown too far": (
        [Stayed("d", 1, common_pb2.REASON_OUT_OF_CAPACITY)],
        True,
        common_pb2.REASON_OUT_OF_CAPACITY,
        [SendCancel("d2", 2, common_pb2.REASON_OUT_OF_CAPACITY)],
    ),
    "the transfer fails for the source alone": (
        [StateArrived("d2", 2, 1), tokens("d2", 1, 41, handle=2), Stayed("d", 1, FAILED)],
        True,
        FAILED,
        [SendCancel("d2", 2, FAILED)],
    ),
    "the source is lost before its state is there": (
        [WorkerLost("d")],
        False,
        LOST,
        [SendCancel("d2", 2, LOST)],
    ),
    "the source is lost with tokens that nobody has seen": (
        [StateArrived("d2", 2, 3), tokens("d2", 3, 43, handle=2), WorkerLost("d")],
        False,
        LOST,
        [SendCancel("d2", 2, LOST)],
    ),
    "the source's engine fails": (
        [Ended("d", 1, common_pb2.REASON_ENGINE_ERROR)],
        False,
        common_pb2.REASON_ENGINE_ERROR,
        [SendCancel("d2", 2, common_pb2.REASON_ENGINE_ERROR)],
    ),
    "the target fails when the state has left": (
        [Ended("d", 1, MIGRATED), Ended("d2", 2, common_pb2.REASON_CHECKSUM_MISMATCH)],
        False,
        common_pb2.REASON_CHECKSUM_MISMATCH,
        [],
    ),
    "the target is lost when the state has left": (
        [Ended("d", 1, MIGRATED), WorkerLost("d2")],
        False,
        LOST,
        [],
    ),
    "the target fails before the source has said that it is done": (
        [
            StateArrived("d2", 2, 1),
            Ended("d2", 2, common_pb2.REASON_ENGINE_ERROR),
            Ended("d", 1, MIGRATED),
        ],
        False,
        common_pb2.REASON_ENGINE_ERROR,
        [],
    ),
    "the state has left for a target that was given up": (
        [Ended("d2", 2, common_pb2.REASON_LEASE_EXPIRED), Ended("d", 1, MIGRATED)],
        False,
        MIGRATED,
        [SendMigrate("d", 1, None)],
    ),
}


@pytest.mark.parametrize("name", _FAILURES)
def test_whatever_fails_the_answer_goes_on_from_what_its_client_has(name: str) -> None:
    events, stays, reason, asked = _FAILURES[name]
    bench = told()
    out: list[Instruction] = []
    for event in events:
        out += bench.feed(event)
    assert [one for one in out if isinstance(one, SendCancel | SendMigrate)] == asked
    assert not [one for one in out if isinstance(one, Deliver | Finish)]
    story = bench.core.explain("r")
    assert story is not None
    causes = {(step.state, step.reason) for step in story.transitions}
    if stays:
        assert (State.DECODING, reason) in causes
        assert bench.feed(tokens("d", 1, 41)) == [deliver(1, 41)]
        return
    assert (State.QUEUED, reason) in causes
    # It is read anew at once where somebody is left, and else as soon as somebody comes.
    again = [one for one in out if isinstance(one, SendPrefill)] or [
        one for one in bench.join_instructions("d9") if isinstance(one, SendPrefill)
    ]
    (prefill,) = again
    assert prefill.generated == (40,)
    worker, handle = prefill.worker_id, prefill.handle
    assert bench.feed(tokens(worker, 1, 41, handle=handle)) == [deliver(1, 41)]
    assert the_finish(bench.feed(Ended(worker, handle, LENGTH))).reason == LENGTH


def test_a_source_that_is_lost_with_nothing_unsaid_needs_no_reading() -> None:
    bench = told()
    bench.feed(tokens("d", 1, 41, 42))
    bench.feed(StateArrived("d2", 2, 3))
    bench.feed(tokens("d2", 3, 43, handle=2))
    assert bench.feed(WorkerLost("d")) == [deliver(3, 43)]
    assert (bench.state(), reason_of(bench)) == (State.DECODING, LOST)
    assert the_finish(bench.feed(Ended("d2", 2, LENGTH))).report.retries == 0
    assert bench.nothing_is_held()


@pytest.mark.parametrize("when", ["leaving", "told", "arrived", "left"])
@pytest.mark.parametrize("why", ["cancel", "deadline"])
def test_the_end_of_a_request_reaches_both_workers_wherever_it_is(when: str, why: str) -> None:
    bench = decoding("d2")
    bench.core.requests["r"].deadline_s = bench.now_s + 5.0
    bench.core.book.deadlines.add(bench.core.requests["r"], bench.now_s + 5.0)
    steps: list[Event] = [DrainRequested("d")]
    if when != "leaving":
        steps.append(Reserved("d2", 2, TICKET))
    if when == "arrived":
        steps.append(StateArrived("d2", 2, 1))
    if when == "left":
        steps.append(Ended("d", 1, MIGRATED))
    for step in steps:
        bench.feed(step)
    reason = CANCELLED if why == "cancel" else common_pb2.REASON_DEADLINE_EXCEEDED
    event = CancelRequested("r", CANCELLED) if why == "cancel" else Tick()
    out = bench.feed(event, after_s=6.0)
    assert the_finish(out).reason == reason
    cancels = {(one.worker_id, one.handle) for one in out if isinstance(one, SendCancel)}
    assert cancels == ({("d2", 2)} if when == "left" else {("d", 1), ("d2", 2)})
    bench.feed(Ended("d2", 2, reason))
    bench.feed(Ended("d", 1, reason))
    assert bench.nothing_is_held()


def test_a_full_target_is_passed_over_and_an_answer_that_nobody_takes_is_finished() -> None:
    bench = decoding()
    bench.join("d2", slots=0)
    assert bench.feed(DrainRequested("d")) == [SendDrain("d")]
    assert bench.state() is State.DECODING
    out = bench.feed(CreditsChanged("d2", 2, 100, 100))
    assert out == [SendReserve("d2", 2, "r", (40,), growth_tokens=58)]
    full = common_pb2.REASON_OUT_OF_CAPACITY
    # It is tried again at once, then later each time, and not for ever.
    again = bench.feed(Ended("d2", 2, full, "full after all"))
    assert again == [SendReserve("d2", 3, "r", (40,), growth_tokens=58)]
    assert bench.feed(Ended("d2", 3, full)) == []
    assert bench.state() is State.DECODING
    handle = 3
    for _ in range(2):
        due_s = bench.due_s
        assert due_s is not None
        assert due_s > bench.now_s
        handle += 1
        again = bench.feed(Tick(), due_s - bench.now_s)
        assert again == [SendReserve("d2", handle, "r", (40,), growth_tokens=58)]
        bench.feed(Ended("d2", handle, full))
    assert bench.due_s is None
    assert bench.feed(CreditsChanged("d2", 2, 100, 100), 60.0) == []
    assert the_finish(bench.feed(Ended("d", 1, LENGTH))).reason == LENGTH


def test_another_model_version_is_no_target() -> None:
    bench = decoding()
    bench.join("d2", version="other")
    assert bench.feed(DrainRequested("d")) == [SendDrain("d")]


def test_an_answer_with_little_left_is_finished_where_it_is() -> None:
    bench = decoding("d2")
    bench.feed(tokens("d", 1, *range(41, 41 + MAX_TOKENS - 17)))
    assert bench.feed(DrainRequested("d")) == [SendDrain("d")]


def test_a_flip_and_a_worker_that_drains_of_itself_empty_it_too() -> None:
    bench = decoding("d2")
    out = bench.feed(FlipRequested("d", "prefill"))
    assert out == [SendDrain("d"), SendReserve("d2", 2, "r", (40,), growth_tokens=58)]
    bench = decoding("d2")
    out = bench.feed(CreditsChanged("d", 0, 0, 100, draining=True))
    assert out == [SendReserve("d2", 2, "r", (40,), growth_tokens=58)]


def test_few_leave_at_once_and_those_with_most_left_go_first() -> None:
    bench = Bench("d", slots=5, migrations_at_once=2)
    for name, answer in (("a", 17), ("b", 20), ("c", 19)):
        bench.request(name, max_tokens=answer)
    for handle in (1, 2, 3):
        bench.feed(tokens("d", 0, 40, handle=handle))
    bench.join("d2", slots=5)
    out = bench.feed(DrainRequested("d"))
    assert [one.request_id for one in out if isinstance(one, SendReserve)] == ["b", "c"]
    bench.feed(Reserved("d2", 4, TICKET))
    bench.feed(StateArrived("d2", 4, 1))
    bench.feed(Ended("d", 2, MIGRATED))
    # What is left of a is too little by itself.
    assert bench.core.requests["a"].state is State.DECODING


def test_the_room_to_grow_is_what_the_source_makes_in_the_time_that_it_may_take() -> None:
    bench = Bench()
    for worker in ("d", "d2"):
        bench.feed(WorkerJoined(worker, "decode", "v"))
        bench.feed(CreditsChanged(worker, 2, 1000, 1000))
    bench.request(max_tokens=900)
    bench.feed(tokens("d", 0, 40))
    bench.feed(LoadChanged("d", step_ms=10.0, step_requests=1, step_tokens=0.9))
    (_, reserve) = bench.feed(DrainRequested("d"))
    assert reserve == SendReserve("d2", 2, "r", (40,), growth_tokens=100)
    bench.feed(Reserved("d2", 2, TICKET))
    # It was quicker all the same: it is given more room.
    bench.feed(Stayed("d", 1, common_pb2.REASON_OUT_OF_CAPACITY))
    out = bench.feed(Ended("d2", 2, common_pb2.REASON_OUT_OF_CAPACITY))
    assert SendReserve("d2", 3, "r", (40,), growth_tokens=400) in out


def test_leases_are_renewed_at_both_ends() -> None:
    bench = told()
    assert bench.feed(Tick(), 1.0) == [SendRenew("d2", 2), SendRenew("d", 1)]


def test_a_target_that_says_nothing_when_the_state_has_left_is_given_up() -> None:
    bench = told()
    bench.feed(Ended("d", 1, MIGRATED))
    out = bench.feed(Tick(), 11.0)
    assert SendCancel("d2", 2, FAILED) in out
    assert bench.state() is not State.DECODING


def test_why_tells_where_a_request_went_and_what_was_weighed() -> None:
    bench = told("d3")
    bench.feed(StateArrived("d2", 2, 1))
    bench.feed(Ended("d", 1, MIGRATED))
    story = bench.core.explain("r")
    assert story is not None
    text = "\n".join(story.lines())
    assert "candidate d -> d2" in text
    assert "candidate d -> d3" in text
    assert "migrating: its worker is to be emptied" in text
    assert "(REASON_DRAINING): from d to d2" in text
    assert "(REASON_MIGRATED): from d to d2" in text
    assert [step.cause for step in story.transitions[-2:]] == [Cause.LEAVES, Cause.MOVED]
