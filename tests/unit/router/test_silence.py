"""Workers that are connected and say nothing keep no request open for long."""

from __future__ import annotations

from protos.tandem.v1 import common_pb2
from router.core.events import Ended, PrefillDone, Reserved, StateArrived, Tick
from router.core.instructions import Finish, Instruction, SendCancel, SendPrefill, SendReserve
from router.core.request import State
from tests.unit.router.lifecycle_bench import HANDOFF, LENGTH, TICKET, Bench, deliver, tokens


def _bench(*more: str) -> Bench:
    return Bench("p", "d", *more, silence_s=10.0, report_wait_s=1.0)


def _let_time_pass(bench: Bench) -> list[Instruction]:
    """To the next moment that the core asked to be woken at."""
    due_s = bench.core.next_deadline_s
    assert due_s is not None
    assert 0.0 < due_s - bench.now_s < 11.0
    return bench.feed(Tick(), due_s - bench.now_s)


def _last_reason(bench: Bench) -> common_pb2.ReasonCode.ValueType:
    explanation = bench.core.explain("r")
    assert explanation is not None
    return [step.reason for step in explanation.transitions if step.reason][-1]


def test_a_reservation_that_is_not_answered_is_made_elsewhere() -> None:
    bench = _bench()
    bench.request()
    bench.join("d2")
    out = _let_time_pass(bench)
    assert out == [
        SendCancel("d", 1, common_pb2.REASON_ENGINE_ERROR),
        SendReserve("d2", 2, "r"),
    ]


def test_prefill_that_hangs_after_its_token_costs_no_token() -> None:
    bench = _bench()
    bench.prefilling()
    bench.join("p2")
    # What it says moves the moment at which it has said nothing for too long.
    assert bench.feed(tokens("p", 0, 40), 5.0) == [deliver(0, 40)]
    assert _let_time_pass(bench) == []
    out = _let_time_pass(bench)
    assert out[:2] == [
        SendCancel("p", 1, common_pb2.REASON_ENGINE_ERROR),
        SendCancel("d", 1, common_pb2.REASON_ENGINE_ERROR),
    ]
    assert out[2] == SendReserve("d", 2, "r", (40,))
    out = bench.feed(Reserved("d", 2, TICKET))
    assert out == [SendPrefill("p2", 2, "r", TICKET, (40,))]
    assert bench.feed(PrefillDone("p2", 2, 3.0, HANDOFF)) == []
    bench.feed(StateArrived("d", 2))
    assert bench.feed(tokens("d", 1, 41, handle=2)) == [deliver(1, 41)]


def test_state_that_was_written_and_is_not_accepted_is_sent_again() -> None:
    bench = _bench()
    bench.prefilling()
    bench.feed(tokens("p", 0, 40))
    bench.feed(PrefillDone("p", 1, 3.0, HANDOFF))
    out = _let_time_pass(bench)
    assert SendCancel("d", 1, common_pb2.REASON_TRANSFER_FAILED) in out
    assert SendReserve("d", 2, "r", (40,)) in out
    assert _last_reason(bench) == common_pb2.REASON_TRANSFER_FAILED


def test_a_first_token_that_does_not_come_is_made_again() -> None:
    bench = _bench()
    bench.prefilling()
    assert bench.feed(tokens("d", 1, 41)) == []
    assert bench.state() is State.DECODING
    out = _let_time_pass(bench)
    assert SendReserve("d", 2, "r") in out
    assert _last_reason(bench) == common_pb2.REASON_ENGINE_ERROR


def test_an_answer_that_is_all_there_does_not_wait_for_a_report_that_does_not_come() -> None:
    bench = _bench()
    bench.prefilling()
    bench.feed(tokens("p", 0, 40))
    bench.feed(tokens("d", 1, 41, 42))
    assert bench.feed(Ended("d", 1, LENGTH)) == []
    began_s = bench.now_s
    out = _let_time_pass(bench)
    assert bench.now_s - began_s == 1.0
    assert [item.reason for item in out if isinstance(item, Finish)] == [LENGTH]
    assert SendCancel("p", 1, LENGTH) in out
    bench.feed(Ended("p", 1, common_pb2.REASON_CANCELLED))
    assert bench.nothing_is_held()
    assert bench.core.next_deadline_s is None


def test_an_answer_that_is_being_decoded_may_pause_for_long() -> None:
    bench = _bench()
    bench.decoding()
    bench.feed(Tick(), 3600.0)
    assert bench.state() is State.DECODING
    assert bench.core.next_deadline_s is None
