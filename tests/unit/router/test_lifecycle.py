"""Each path through the life of a request, one at a time, on virtual time."""

from __future__ import annotations

from protos.tandem.v1 import common_pb2
from protos.tandem.v1.handoff_pb2 import HandoffTicket
from protos.tandem.v1.inference_pb2 import HandoffReport
from router.core.events import (
    CancelRequested,
    CreditsChanged,
    Ended,
    Event,
    PrefillDone,
    RequestArrived,
    Reserved,
    Role,
    ShutDown,
    StateArrived,
    Tick,
    TokensArrived,
    WorkerJoined,
    WorkerLost,
)
from router.core.instructions import (
    Deliver,
    Finish,
    Instruction,
    SendCancel,
    SendPrefill,
    SendReserve,
)
from router.core.lifecycle import Lifecycle
from router.core.request import Cause, State

TICKET = HandoffTicket(reservation=7)
LENGTH = common_pb2.REASON_LENGTH


class Bench:
    """A lifecycle with a clock that only the test moves."""

    def __init__(self, *workers: str, queue_limit: int = 4, slots: int = 2) -> None:
        """Workers are named p... or d... for their role."""
        self.core = Lifecycle(queue_limit, validate=True)
        self.now_s = 100.0
        for worker in workers:
            self.join(worker, slots)

    def join(self, worker: str, slots: int = 2, version: str = "v") -> None:
        role: Role = "prefill" if worker.startswith("p") else "decode"
        self.feed(WorkerJoined(worker, role, version))
        self.feed(CreditsChanged(worker, slots, 100, 100))

    def feed(self, event: Event, after_s: float = 0.0) -> list[Instruction]:
        self.now_s += after_s
        return self.core.handle(event, self.now_s)

    def request(self, name: str = "r", max_tokens: int = 5, **fields: float) -> list[Instruction]:
        return self.feed(RequestArrived(name, 10, max_tokens, **fields))  # type: ignore[arg-type]

    def state(self, name: str = "r") -> State:
        explanation = self.core.explain(name)
        assert explanation is not None
        return explanation.state

    def prefilling(self) -> None:
        """Bring request r, handle 1, to where p reads its prompt for d."""
        assert self.request() == [SendReserve("d", 1, "r")]
        assert self.feed(Reserved("d", 1, TICKET)) == [SendPrefill("p", 1, "r", TICKET)]
        assert self.state() is State.PREFILLING

    def decoding(self) -> None:
        """Bring request r, handle 1, to where d decodes, with token 0 delivered."""
        self.prefilling()
        self.feed(tokens("p", 0, 40))
        self.feed(PrefillDone("p", 1, 3.0))
        assert self.state() is State.HANDING_OFF
        self.feed(StateArrived("d", 1))
        assert self.state() is State.DECODING

    def nothing_is_held(self) -> bool:
        return not self.core.holdings.attempts and all(
            not view.holds for view in self.core.fleet.all()
        )


def tokens(worker: str, first: int, *ids: int, handle: int = 1) -> TokensArrived:
    return TokensArrived(worker, [handle], [first], [len(ids)], list(ids), [])


def deliver(first: int, *ids: int) -> Deliver:
    return Deliver("r", first, list(ids), [])


def the_finish(out: list[Instruction]) -> Finish:
    (finish,) = [item for item in out if isinstance(item, Finish)]
    return finish


def test_a_request_goes_through_every_state_and_reports_its_times() -> None:
    bench = Bench("p", "d", slots=1)
    bench.request("before", max_tokens=1)  # keeps the workers busy for a second
    assert bench.request() == []
    bench.feed(Ended("d", 1, common_pb2.REASON_ENGINE_ERROR), 1.0)
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
    finish = the_finish(bench.feed(PrefillDone("p", 1, 3.0)))
    assert (finish.reason, finish.report.completion_tokens) == (LENGTH, 5)
    assert bench.nothing_is_held()


def test_tokens_that_came_before_are_not_delivered_again() -> None:
    bench = Bench("p", "d")
    bench.decoding()
    assert bench.feed(tokens("d", 0, 40, 41)) == [deliver(1, 41)]
    assert bench.feed(tokens("d", 0, 40, 41)) == []


def test_a_gap_fails_the_request_and_frees_the_worker() -> None:
    bench = Bench("p", "d")
    bench.decoding()
    out = bench.feed(tokens("d", 2, 42))
    assert the_finish(out).reason == common_pb2.REASON_ENGINE_ERROR
    assert out[-1] == SendCancel("d", 1, common_pb2.REASON_ENGINE_ERROR)


def test_more_tokens_than_were_asked_for_fail_the_request() -> None:
    bench = Bench("p", "d")
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
        bench = Bench("p", "d")
        bench.prefilling()
        out = bench.feed(Ended(worker, 1, LENGTH))
        if worker == "d":
            assert out == []  # the first token may still come
            out = bench.feed(PrefillDone("p", 1))
        assert the_finish(out).reason == common_pb2.REASON_ENGINE_ERROR


def test_prefill_that_is_done_without_a_token_is_a_fault() -> None:
    bench = Bench("p", "d")
    bench.prefilling()
    out = bench.feed(PrefillDone("p", 1))
    assert the_finish(out).reason == common_pb2.REASON_ENGINE_ERROR
    assert SendCancel("d", 1, common_pb2.REASON_ENGINE_ERROR) in out


def test_a_failed_hand_off_cancels_the_other_side_whoever_saw_it() -> None:
    reason = common_pb2.REASON_MANIFEST_MISMATCH
    for seen_by, other in (("p", "d"), ("d", "p")):
        bench = Bench("p", "d")
        bench.prefilling()
        out = bench.feed(Ended(seen_by, 1, reason, "wrong epoch"))
        assert the_finish(out).detail == "wrong epoch"
        assert out[-1] == SendCancel(other, 1, reason)
        assert bench.state() is State.FAILED


def test_an_end_without_a_reason_is_an_engine_error() -> None:
    bench = Bench("d")
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
    bench.feed(PrefillDone("p", 1))
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


def test_losing_decode_fails_its_requests_in_every_state() -> None:
    for stage in ("reserved", "prefilling", "decoding"):
        bench = Bench("p", "d", "d2")
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


def test_losing_prefill_fails_what_it_still_reads_and_nothing_else() -> None:
    bench = Bench("p", "d")
    bench.prefilling()
    bench.feed(tokens("p", 0, 40))
    out = bench.feed(WorkerLost("p"))
    assert the_finish(out).reason == common_pb2.REASON_WORKER_LOST
    assert out[-1] == SendCancel("d", 1, common_pb2.REASON_WORKER_LOST)

    bench = Bench("p", "d")
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


def test_losing_prefill_before_its_token_came_fails_even_a_decoded_answer() -> None:
    bench = Bench("p", "d")
    bench.prefilling()
    bench.feed(StateArrived("d", 1))
    bench.feed(tokens("d", 1, 41, 42, 43, 44))
    bench.feed(Ended("d", 1, LENGTH))
    finish = the_finish(bench.feed(WorkerLost("p")))
    assert finish.reason == common_pb2.REASON_WORKER_LOST
    assert bench.nothing_is_held()


def test_losing_the_last_decode_worker_fails_those_that_wait() -> None:
    bench = Bench("d", slots=1)
    bench.request("first")
    bench.request()
    out = bench.feed(WorkerLost("d"))
    reasons = {item.request_id: item.reason for item in out if isinstance(item, Finish)}
    assert reasons == {
        "first": common_pb2.REASON_WORKER_LOST,
        "r": common_pb2.REASON_NO_WORKERS,
    }


def test_a_new_session_of_a_known_worker_ends_what_the_old_one_held() -> None:
    bench = Bench("d")
    bench.request()
    finish = the_finish(bench.feed(WorkerJoined("d", "decode", "v")))
    assert finish.reason == common_pb2.REASON_WORKER_LOST


def test_without_decode_workers_a_request_fails_at_once() -> None:
    finish = the_finish(Bench("p").request())
    assert finish.reason == common_pb2.REASON_NO_WORKERS


def test_a_full_queue_refuses_and_the_strictest_class_goes_first() -> None:
    bench = Bench("d", queue_limit=3, slots=1)
    bench.request("running")
    bench.request("batch", class_rank=1)
    bench.request("first")
    bench.request("second")
    finish = the_finish(bench.request("late"))
    assert (finish.request_id, finish.reason) == ("late", common_pb2.REASON_QUEUE_FULL)
    order = []
    for handle in range(1, 4):
        out = bench.feed(Ended("d", handle, common_pb2.REASON_ENGINE_ERROR))
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
    out = bench.feed(Ended("d", 1, common_pb2.REASON_ENGINE_ERROR))
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
    bench = Bench("p", "p2", "d")
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


def test_a_worker_that_refuses_though_idle_fails_the_request() -> None:
    bench = Bench("d")
    bench.request()
    finish = the_finish(bench.feed(Ended("d", 1, common_pb2.REASON_OUT_OF_CAPACITY)))
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
    assert bench.feed(PrefillDone("p", 1)) == [SendReserve("d", 2, "r")]


def test_history_is_bounded() -> None:
    core = Lifecycle(4, history_limit=3)
    for number in range(10):
        core.handle(RequestArrived(f"r{number}", 1, 1), 0.0)
    assert core.explain("r6") is None
    assert core.explain("r7") is not None
