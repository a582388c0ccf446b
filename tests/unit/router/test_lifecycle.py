"""Each path through the life of a request, one at a time, on virtual time."""

from __future__ import annotations

from protos.tandem.v1 import common_pb2
from protos.tandem.v1.inference_pb2 import HandoffReport
from router.core.events import (
    CancelRequested,
    CreditsChanged,
    Ended,
    PrefillDone,
    Reserved,
    StateArrived,
    Tick,
    WorkerJoined,
    WorkerLost,
)
from router.core.instructions import (
    Finish,
    SendCancel,
    SendPrefill,
)
from router.core.request import Cause, State
from tests.unit.router.lifecycle_bench import (
    HANDOFF,
    LENGTH,
    TICKET,
    Bench,
    deliver,
    the_finish,
    tokens,
)


def test_a_request_goes_through_every_state_and_reports_its_times() -> None:
    bench = Bench("p", "d", slots=1)
    bench.request("before", max_tokens=1)  # keeps the workers busy for a second
    assert bench.request() == []
    bench.feed(Ended("d", 1, common_pb2.REASON_INVALID_ARGUMENT), 1.0)
    assert bench.core.requests["r"].state is State.RESERVED
    bench.feed(Reserved("d", 2, TICKET), 0.1)
    assert bench.feed(tokens("p", 0, 40, handle=2), 0.4) == [deliver(0, 40)]
    handoff = HandoffReport(kv_bytes=5)
    bench.feed(PrefillDone("p", 2, 12.0, handoff))
    bench.feed(StateArrived("d", 2))
    assert bench.feed(tokens("d", 1, 41, 42, handle=2), 0.2) == [deliver(1, 41, 42)]
    assert bench.feed(tokens("d", 3, 43, 44, handle=2), 0.2) == [deliver(3, 43, 44)]
    finish = the_finish(bench.feed(Ended("d", 2, LENGTH), 0.3))
    report = finish.report
    assert (finish.reason, report.completion_tokens, report.prompt_tokens) == (LENGTH, 5, 10)
    assert (report.prefill_worker, report.decode_worker) == ("p", "d")
    assert (report.prefill_ms, report.handoff) == (12.0, handoff)
    times = (report.queue_ms, report.ttft_ms, report.mean_itl_ms, report.total_ms)
    assert [round(time) for time in times] == [1000, 1500, 100, 2200]
    explanation = bench.core.explain("r")
    assert explanation is not None
    assert [step.state for step in explanation.transitions] == [
        State.QUEUED,
        State.RESERVED,
        State.PREFILLING,
        State.HANDING_OFF,
        State.DECODING,
        State.FINISHED,
    ]
    assert explanation.transitions[1].cause is Cause.PLACED
    assert bench.nothing_is_held()


def test_without_prefill_workers_the_decode_worker_reads_the_prompt() -> None:
    bench = Bench("d")
    assert bench.request() == [SendPrefill("d", 1, "r", None)]
    assert bench.feed(tokens("d", 0, 40)) == [deliver(0, 40)]
    assert bench.state() is State.DECODING
    bench.feed(PrefillDone("d", 1, 3.0))
    finish = the_finish(bench.feed(Ended("d", 1, common_pb2.REASON_STOP_TOKEN)))
    assert finish.report.prefill_ms == 3.0
    assert finish.report.prefill_worker == "d"
    assert bench.nothing_is_held()


def test_prefill_workers_of_another_model_do_not_count() -> None:
    bench = Bench("d")
    bench.join("p", version="other")
    assert bench.request() == [SendPrefill("d", 1, "r", None)]


def test_a_prompt_too_long_for_every_prefill_worker_is_read_by_decode() -> None:
    bench = Bench("p", "d")
    bench.feed(CreditsChanged("p", 2, 9, 9))
    assert bench.request() == [SendPrefill("d", 1, "r", None)]


def test_decode_tokens_wait_for_the_first_one() -> None:
    bench = Bench("p", "d")
    bench.prefilling()
    bench.feed(StateArrived("d", 1))
    assert bench.feed(tokens("d", 1, 41)) == []
    assert bench.feed(tokens("d", 2, 42, 43)) == []
    assert bench.feed(tokens("p", 0, 40)) == [deliver(0, 40), deliver(1, 41, 42, 43)]


def test_an_end_from_decode_waits_for_the_first_token_and_the_report_of_prefill() -> None:
    bench = Bench("p", "d")
    bench.prefilling()
    bench.feed(StateArrived("d", 1))
    bench.feed(tokens("d", 1, 41, 42, 43, 44))
    assert bench.feed(Ended("d", 1, LENGTH)) == []
    assert bench.feed(tokens("p", 0, 40)) == [deliver(0, 40), deliver(1, 41, 42, 43, 44)]
    finish = the_finish(bench.feed(PrefillDone("p", 1, 3.0, HANDOFF)))
    assert (finish.reason, finish.report.completion_tokens) == (LENGTH, 5)
    assert bench.nothing_is_held()


def test_tokens_that_came_before_are_not_delivered_again() -> None:
    bench = Bench("p", "d")
    bench.decoding()
    assert bench.feed(tokens("d", 0, 40, 41)) == [deliver(1, 41)]
    assert bench.feed(tokens("d", 0, 40, 41)) == []


def test_without_retries_a_gap_fails_the_request_and_frees_the_worker() -> None:
    bench = Bench("p", "d", max_retries=0)
    bench.decoding()
    out = bench.feed(tokens("d", 2, 42))
    assert the_finish(out).reason == common_pb2.REASON_ENGINE_ERROR
    assert out[-1] == SendCancel("d", 1, common_pb2.REASON_ENGINE_ERROR)


def test_more_tokens_than_were_asked_for_fail_the_request() -> None:
    bench = Bench("p", "d", max_retries=0)
    bench.decoding()
    finish = the_finish(bench.feed(tokens("d", 1, *range(41, 46))))
    assert "token 5 where 5 were asked for" in finish.detail


def test_a_first_token_that_is_the_last_frees_the_reservation() -> None:
    bench = Bench("p", "d")
    bench.prefilling()
    bench.feed(tokens("p", 0, 40))
    out = bench.feed(Ended("p", 1, common_pb2.REASON_STOP_TOKEN))
    assert the_finish(out).reason == common_pb2.REASON_STOP_TOKEN
    assert out[-1] == SendCancel("d", 1, common_pb2.REASON_STOP_TOKEN)
    assert not bench.nothing_is_held()
    bench.feed(Ended("d", 1, common_pb2.REASON_CANCELLED))
    assert bench.nothing_is_held()


def test_an_end_without_a_token_is_a_fault() -> None:
    for worker in ("p", "d"):
        bench = Bench("p", "d", max_retries=0)
        bench.prefilling()
        out = bench.feed(Ended(worker, 1, LENGTH))
        if worker == "d":
            assert out == []  # the first token may still come
            out = bench.feed(PrefillDone("p", 1, 1.0, HANDOFF))
        assert the_finish(out).reason == common_pb2.REASON_ENGINE_ERROR


def test_prefill_that_is_done_without_a_token_is_a_fault() -> None:
    bench = Bench("p", "d", max_retries=0)
    bench.prefilling()
    out = bench.feed(PrefillDone("p", 1, 1.0, HANDOFF))
    assert the_finish(out).reason == common_pb2.REASON_ENGINE_ERROR
    assert SendCancel("d", 1, common_pb2.REASON_ENGINE_ERROR) in out


def test_without_retries_a_failed_hand_off_cancels_the_other_side_whoever_saw_it() -> None:
    reason = common_pb2.REASON_MANIFEST_MISMATCH
    for seen_by, other in (("p", "d"), ("d", "p")):
        bench = Bench("p", "d", max_retries=0)
        bench.prefilling()
        out = bench.feed(Ended(seen_by, 1, reason, "wrong epoch"))
        assert the_finish(out).detail == "wrong epoch"
        assert out[-1] == SendCancel(other, 1, reason)
        assert bench.state() is State.FAILED


def test_an_end_without_a_reason_is_an_engine_error() -> None:
    bench = Bench("d", max_retries=0)
    bench.request()
    finish = the_finish(bench.feed(Ended("d", 1, common_pb2.REASON_UNSPECIFIED)))
    assert finish.reason == common_pb2.REASON_ENGINE_ERROR


def test_cancel_while_queued_reaches_no_worker() -> None:
    bench = Bench("d", slots=1)
    bench.request("first")
    bench.request()
    out = bench.feed(CancelRequested("r", common_pb2.REASON_CLIENT_GONE))
    assert [type(item) for item in out] == [Finish]
    assert bench.state() is State.CANCELLED


def test_cancel_while_reserved_reaches_decode_alone() -> None:
    bench = Bench("p", "d")
    bench.request()
    out = bench.feed(CancelRequested("r", common_pb2.REASON_CANCELLED))
    assert out[1:] == [SendCancel("d", 1, common_pb2.REASON_CANCELLED)]
    assert bench.feed(Reserved("d", 1, TICKET)) == []  # crossed the cancel
    bench.feed(Ended("d", 1, common_pb2.REASON_CANCELLED))
    assert bench.nothing_is_held()


def test_cancel_while_prefilling_reaches_both() -> None:
    bench = Bench("p", "d")
    bench.prefilling()
    out = bench.feed(CancelRequested("r", common_pb2.REASON_CANCELLED))
    assert {item.worker_id for item in out if isinstance(item, SendCancel)} == {"p", "d"}
    assert bench.feed(tokens("p", 0, 40)) == []  # crossed the cancel
    bench.feed(PrefillDone("p", 1, 1.0, HANDOFF))
    bench.feed(Ended("d", 1, common_pb2.REASON_CANCELLED))
    assert bench.nothing_is_held()


def test_cancel_after_prefill_reaches_decode_alone() -> None:
    bench = Bench("p", "d")
    bench.decoding()
    out = bench.feed(CancelRequested("r", common_pb2.REASON_CANCELLED))
    assert out[1:] == [SendCancel("d", 1, common_pb2.REASON_CANCELLED)]


def test_a_stop_string_is_a_good_end() -> None:
    bench = Bench("p", "d")
    bench.decoding()
    bench.feed(CancelRequested("r", common_pb2.REASON_STOP_STRING))
    assert bench.state() is State.FINISHED


def test_cancel_of_an_unknown_request_does_nothing() -> None:
    assert Bench().feed(CancelRequested("x", common_pb2.REASON_CANCELLED)) == []


def test_a_deadline_ends_a_request_wherever_it_is() -> None:
    bench = Bench("d", slots=1)
    bench.request("running", deadline_s=102.0)
    bench.request("waiting", deadline_s=101.0)
    bench.request("patient", deadline_s=200.0)
    assert bench.core.next_deadline_s == 101.0
    assert bench.feed(Tick(), 0.5) == []
    assert the_finish(bench.feed(Tick(), 1.0)).request_id == "waiting"
    out = bench.feed(Tick(), 1.0)
    assert the_finish(out).reason == common_pb2.REASON_DEADLINE_EXCEEDED
    assert out[1:] == [SendCancel("d", 1, common_pb2.REASON_DEADLINE_EXCEEDED)]
    assert bench.core.next_deadline_s == 200.0


def test_without_retries_losing_decode_fails_its_requests_in_every_state() -> None:
    for stage in ("reserved", "prefilling", "decoding"):
        bench = Bench("p", "d", "d2", max_retries=0)
        if stage == "reserved":
            bench.request()
        elif stage == "prefilling":
            bench.prefilling()
        else:
            bench.decoding()
        out = bench.feed(WorkerLost("d", "gone"))
        assert the_finish(out).reason == common_pb2.REASON_WORKER_LOST
        assert "d was lost: gone" in the_finish(out).detail
        cancels = [item for item in out if isinstance(item, SendCancel)]
        assert [item.worker_id for item in cancels] == (["p"] if stage == "prefilling" else [])


def test_without_retries_losing_prefill_fails_what_it_still_reads_alone() -> None:
    bench = Bench("p", "d", max_retries=0)
    bench.prefilling()
    bench.feed(tokens("p", 0, 40))
    out = bench.feed(WorkerLost("p"))
    assert the_finish(out).reason == common_pb2.REASON_WORKER_LOST
    assert out[-1] == SendCancel("d", 1, common_pb2.REASON_WORKER_LOST)

    bench = Bench("p", "d", max_retries=0)
    bench.decoding()
    assert bench.feed(WorkerLost("p")) == []
    assert bench.feed(tokens("d", 1, 41)) == [deliver(1, 41)]


def test_losing_prefill_after_the_state_arrived_costs_only_its_report() -> None:
    bench = Bench("p", "d")
    bench.prefilling()
    bench.feed(tokens("p", 0, 40))
    bench.feed(StateArrived("d", 1))
    assert bench.feed(WorkerLost("p")) == []
    bench.feed(tokens("d", 1, 41, 42, 43, 44))
    assert the_finish(bench.feed(Ended("d", 1, LENGTH))).reason == LENGTH


def test_without_retries_losing_prefill_before_its_token_fails_even_a_decoded_answer() -> None:
    bench = Bench("p", "d", max_retries=0)
    bench.prefilling()
    bench.feed(StateArrived("d", 1))
    bench.feed(tokens("d", 1, 41, 42, 43, 44))
    bench.feed(Ended("d", 1, LENGTH))
    finish = the_finish(bench.feed(WorkerLost("p")))
    assert finish.reason == common_pb2.REASON_WORKER_LOST
    assert bench.nothing_is_held()


def test_a_new_session_of_a_known_worker_ends_what_the_old_one_held() -> None:
    bench = Bench("d", max_retries=0)
    bench.request()
    finish = the_finish(bench.feed(WorkerJoined("d", "decode", "v")))
    assert finish.reason == common_pb2.REASON_WORKER_LOST
