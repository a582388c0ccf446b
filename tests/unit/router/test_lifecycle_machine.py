"""Random events against scripted workers: whatever the order, the promises of the core hold."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from random import Random

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from protos.tandem.v1 import common_pb2
from protos.tandem.v1.handoff_pb2 import HandoffTicket
from router.core.events import (
    CancelRequested,
    CreditsChanged,
    Ended,
    Event,
    PrefillDone,
    RequestArrived,
    Reserved,
    ShutDown,
    StateArrived,
    Tick,
    TokensArrived,
    WorkerJoined,
    WorkerLost,
)
from router.core.instructions import Deliver, Finish, SendCancel, SendPrefill, SendReserve
from router.core.lifecycle import Lifecycle
from router.core.reasons import WELL

SLOTS = 3
TOKENS = 40


@dataclass
class Job:
    """What a scripted worker holds for one handle."""

    request_id: str
    kind: str  # reserve | handoff | local
    stage: str = "new"
    sent: int = 0


@dataclass
class ScriptedWorker:
    """A worker that does what the protocol says, one step at a time, in its own stream's order."""

    worker_id: str
    role: str
    jobs: dict[int, Job] = field(default_factory=dict)
    commands: list[SendReserve | SendPrefill | SendCancel] = field(default_factory=list)


class RouterMachine(RuleBasedStateMachine):
    """Clients come and go, workers come and go, and every step of every worker may be next."""

    def __init__(self) -> None:
        super().__init__()
        self.lifecycle = Lifecycle(queue_limit=9, validate=True)
        self.now_s = 0.0
        self.workers: dict[str, ScriptedWorker] = {}
        self.names = 0
        self.max_tokens: dict[str, int] = {}
        self.delivered: dict[str, list[int]] = defaultdict(list)
        self.finished: dict[str, Finish] = {}
        self.commands_seen: set[tuple[str, int, str]] = set()
        self.written: set[int] = set()  # handles whose state has reached decode

    def feed(self, event: Event) -> None:
        self.now_s += 0.001
        for out in self.lifecycle.handle(event, self.now_s):
            match out:
                case Deliver():
                    assert out.request_id not in self.finished
                    assert out.first_index == len(self.delivered[out.request_id])
                    self.delivered[out.request_id].extend(out.token_ids)
                case Finish():
                    assert out.request_id not in self.finished
                    self.finished[out.request_id] = out
                    got = self.delivered[out.request_id]
                    assert got == list(range(len(got)))
                    assert out.report.completion_tokens == len(got)
                    if out.reason == common_pb2.REASON_ENGINE_ERROR:
                        assert out.detail == "scripted"  # no worker here breaks the protocol
                    if out.reason == common_pb2.REASON_LENGTH:
                        assert len(got) == self.max_tokens[out.request_id]
                case SendReserve() | SendPrefill() | SendCancel():
                    assert out.worker_id in self.workers
                    key = (out.worker_id, out.handle, type(out).__name__)
                    assert key not in self.commands_seen
                    self.commands_seen.add(key)
                    self.workers[out.worker_id].commands.append(out)

    def credits(self, worker: ScriptedWorker) -> CreditsChanged:
        held = sum(self._tokens(job) for job in worker.jobs.values())
        return CreditsChanged(
            worker.worker_id, max(0, SLOTS - len(worker.jobs)), max(0, TOKENS - held), TOKENS
        )

    def _tokens(self, job: Job) -> int:
        return 4 if job.kind == "handoff" else 4 + self.max_tokens[job.request_id]

    def pick(self, data: st.DataObject) -> ScriptedWorker:
        return self.workers[data.draw(st.sampled_from(sorted(self.workers)))]

    @initialize(prefill=st.integers(0, 2), decode=st.integers(1, 2))
    def some_workers_are_there(self, prefill: int, decode: int) -> None:
        for role in ["prefill"] * prefill + ["decode"] * decode:
            self.worker_joins(role)

    @rule(role=st.sampled_from(["prefill", "decode"]))
    def worker_joins(self, role: str) -> None:
        if len(self.workers) < 4:
            self.names += 1
            worker = ScriptedWorker(f"{role}-{self.names}", role)
            self.workers[worker.worker_id] = worker
            self.feed(WorkerJoined(worker.worker_id, "decode" if role == "decode" else "prefill"))
            self.feed(self.credits(worker))

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def worker_is_lost(self, data: st.DataObject) -> None:
        if data.draw(st.integers(0, 2)):
            return  # the other paths need workers that live for a while
        worker = self.pick(data)
        del self.workers[worker.worker_id]
        self.feed(WorkerLost(worker.worker_id))

    @rule(
        lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4),
        rank=st.integers(0, 1),
        deadline=st.sampled_from([None, None, None, 0.02]),
    )
    def requests_arrive(self, lengths: list[int], rank: int, deadline: float | None) -> None:
        for max_tokens in lengths:
            self.names += 1
            name = f"r{self.names}"
            self.max_tokens[name] = max_tokens
            deadline_s = None if deadline is None else self.now_s + deadline
            self.feed(RequestArrived(name, 4, max_tokens, rank, deadline_s))

    @precondition(lambda self: self.lifecycle.requests)
    @rule(data=st.data())
    def client_cancels(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.lifecycle.requests)))
        reason = data.draw(
            st.sampled_from([common_pb2.REASON_CLIENT_GONE, common_pb2.REASON_STOP_STRING])
        )
        self.feed(CancelRequested(name, reason))

    @rule()
    def time_passes(self) -> None:
        self.now_s += 0.01
        self.feed(Tick())

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def credits_are_sent(self, data: st.DataObject) -> None:
        self.feed(self.credits(self.pick(data)))

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def stale_event(self, data: st.DataObject) -> None:
        worker = self.pick(data)
        handle = 10**6 + data.draw(st.integers(0, 3))
        events: list[Event] = [
            StateArrived(worker.worker_id, handle),
            PrefillDone(worker.worker_id, handle),
            Ended(worker.worker_id, handle, common_pb2.REASON_LENGTH),
            TokensArrived(worker.worker_id, [handle], [0], [1], [7]),
        ]
        self.feed(data.draw(st.sampled_from(events)))

    @precondition(lambda self: any(w.commands for w in self.workers.values()))
    @rule(data=st.data(), refuse=st.sampled_from([False, False, False, True]))
    def worker_takes_a_command(self, data: st.DataObject, refuse: bool) -> None:
        busy = [w for w in self.workers.values() if w.commands]
        worker = data.draw(st.sampled_from(sorted(busy, key=lambda w: w.worker_id)))
        if refuse and not isinstance(worker.commands[0], SendCancel):
            command = worker.commands.pop(0)
            reason = data.draw(
                st.sampled_from([common_pb2.REASON_OUT_OF_CAPACITY, common_pb2.REASON_ENGINE_ERROR])
            )
            self.feed(Ended(worker.worker_id, command.handle, reason, "scripted"))
        else:
            self.take_command(worker)

    def take_command(self, worker: ScriptedWorker) -> None:
        command = worker.commands.pop(0)
        if isinstance(command, SendCancel):
            if worker.jobs.pop(command.handle, None) is not None:
                self.feed(Ended(worker.worker_id, command.handle, common_pb2.REASON_CANCELLED))
        elif isinstance(command, SendReserve):
            worker.jobs[command.handle] = Job(command.request_id, "reserve")
        else:
            kind = "local" if command.ticket is None else "handoff"
            worker.jobs[command.handle] = Job(command.request_id, kind)

    @precondition(lambda self: self.workers)
    @rule(order=st.randoms(use_true_random=False), steps=st.integers(1, 30))
    def workers_run(self, order: Random, steps: int) -> None:
        for _ in range(steps):
            busy = sorted(name for name, w in self.workers.items() if w.commands or w.jobs)
            if not busy:
                return
            worker = self.workers[order.choice(busy)]
            if worker.commands and (not worker.jobs or order.random() < 0.5):
                self.take_command(worker)
            else:
                self.step(worker, order.choice(sorted(worker.jobs)), order.randint(1, 3))

    def step(self, worker: ScriptedWorker, handle: int, count: int) -> None:
        job, name = worker.jobs[handle], worker.worker_id
        limit = self.max_tokens[job.request_id]
        if job.kind == "reserve" and job.stage == "new":
            job.stage = "reserved"
            self.feed(Reserved(name, handle, HandoffTicket(reservation=handle)))
        elif job.kind == "reserve" and job.stage == "reserved":
            if handle in self.written:
                job.stage, job.sent = "decoding", 1
                self.feed(StateArrived(name, handle))
        elif job.kind == "handoff" and job.stage in ("new", "half"):
            # The first token may come before or after the state is written: decode may be quicker.
            token_first = handle % 2 == 0
            if (job.stage == "new") == token_first:
                self.feed(TokensArrived(name, [handle], [0], [1], [0]))
            else:
                self.written.add(handle)
            job.stage = "half" if job.stage == "new" else "done"
        elif job.kind == "handoff":
            del worker.jobs[handle]
            if limit == 1:
                self.feed(Ended(name, handle, common_pb2.REASON_LENGTH))
            else:
                self.feed(PrefillDone(name, handle, 1.0))
        elif job.sent < limit:
            count = min(count, limit - job.sent)
            ids = list(range(job.sent, job.sent + count))
            self.feed(TokensArrived(name, [handle], [job.sent], [count], ids))
            job.sent += count
        else:
            del worker.jobs[handle]
            self.feed(Ended(name, handle, common_pb2.REASON_LENGTH))

    @invariant()
    def every_live_request_is_listed(self) -> None:
        live = set(self.max_tokens) - set(self.finished)
        assert live == set(self.lifecycle.requests)

    def teardown(self) -> None:
        """Let every worker work off what it has: all ends well or is cancelled, nothing leaks."""
        for _ in range(50):
            self.workers_run(Random(0), 30)
            for worker in self.workers.values():
                self.feed(self.credits(worker))
        assert not self.lifecycle.requests, "something waits for ever"
        assert not self.lifecycle.holdings.attempts
        assert all(not view.holds for view in self.lifecycle.fleet.all())
        assert set(self.finished) == set(self.max_tokens)
        self.feed(ShutDown())
        for name, finish in self.finished.items():
            explanation = self.lifecycle.explain(name)
            assert explanation is not None
            assert explanation.transitions[-1].reason == finish.reason
            if finish.reason in WELL - {common_pb2.REASON_STOP_STRING}:
                assert len(self.delivered[name]) == self.max_tokens[name]


TestRouterMachine = RouterMachine.TestCase
TestRouterMachine.settings = settings(
    max_examples=150,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
