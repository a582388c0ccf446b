"""Random events against scripted workers: whatever the order, the promises of the core hold.

Nothing is lost: requests go on from the tokens they have after every kind of failure, and each
answer is whole when its request ends well. And nothing depends on anything but the events: the log
of a run gives the same instructions again.
"""

from __future__ import annotations

from collections import defaultdict
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
from router.core.event_log import event_line, header_line, replay
from router.core.events import (
    CacheChanged,
    CancelRequested,
    DrainRequested,
    Ended,
    Event,
    FlipRequested,
    LoadChanged,
    PrefillDone,
    RequestArrived,
    Role,
    ShutDown,
    StateArrived,
    Stayed,
    Tick,
    TokensArrived,
    WorkerJoined,
    WorkerLost,
)
from router.core.instructions import Deliver, Finish, SendMigrate, SendRenew
from router.core.lifecycle import Lifecycle
from router.core.policy import ClassPolicy, Policy, TenantPolicy
from router.core.prefixes import PrefixKeys
from router.core.reasons import WELL
from tests.unit.router.scripted_workers import PROMPT_TOKENS, ScriptedWorker

_POLICY = Policy(
    classes=(ClassPolicy("strict", 0.05, 0.01, 4.0), ClassPolicy("batch", 1.0, 0.1, 1.0)),
    tenants={"metered": TenantPolicy(2.0, tokens_per_s=500.0, burst_tokens=50.0)},
    queue_limit=9,
    patience=2.0,
    local_prefill_tokens=2,
    migration_least_tokens=1,
    orphan_grace_s=5.0,
    index_entries=8,
)
REFUSALS = [
    common_pb2.REASON_OUT_OF_CAPACITY,
    common_pb2.REASON_ENGINE_ERROR,
    common_pb2.REASON_DRAINING,
    common_pb2.REASON_TRANSFER_FAILED,
    common_pb2.REASON_INVALID_ARGUMENT,
]
# What may end a request badly though every client waits: all else is made good.
_EXPECTED = {
    common_pb2.REASON_INVALID_ARGUMENT,
    common_pb2.REASON_NO_WORKERS,
    common_pb2.REASON_QUEUE_FULL,
    common_pb2.REASON_OVERLOADED,
    common_pb2.REASON_RATE_LIMITED,
    common_pb2.REASON_DEADLINE_EXCEEDED,
    common_pb2.REASON_SHUTTING_DOWN,
    common_pb2.REASON_CLIENT_GONE,
}


class RouterMachine(RuleBasedStateMachine):
    """Clients come and go, workers come and go, and every step of every worker may be next."""

    def __init__(self) -> None:
        super().__init__()
        self.lifecycle = Lifecycle(_POLICY, validate=True)
        self.now_s = 0.0
        self.workers: dict[str, ScriptedWorker] = {}
        self.names = 0
        self.max_tokens: dict[str, int] = {}
        self.delivered: dict[str, list[int]] = defaultdict(list)
        self.finished: dict[str, Finish] = {}
        self.commands_seen: set[tuple[str, int, str]] = set()
        self.written: dict[int, int] = {}
        self.log = [header_line(_POLICY, 1)]

    def feed(self, event: Event) -> None:
        self.now_s += 0.001
        instructions = self.lifecycle.handle(event, self.now_s)
        self.log.append(event_line(event, self.now_s, instructions))
        for out in instructions:
            match out:
                case Deliver():
                    assert out.request_id not in self.finished
                    assert out.first_index == len(self.delivered[out.request_id])
                    self.delivered[out.request_id].extend(out.token_ids)
                case Finish():
                    self._finish(out)
                case _:
                    assert out.worker_id in self.workers
                    handle = getattr(out, "handle", None)
                    if handle is not None and not isinstance(out, SendRenew | SendMigrate):
                        key = (out.worker_id, handle, type(out).__name__)
                        assert key not in self.commands_seen
                        self.commands_seen.add(key)
                    self.workers[out.worker_id].commands.append(out)

    def _finish(self, out: Finish) -> None:
        name = out.request_id
        assert name not in self.finished
        self.finished[name] = out
        got = self.delivered[name]
        assert got == list(range(len(got)))
        assert out.report.completion_tokens == len(got)
        assert out.report.retries <= _POLICY.max_retries
        if out.reason == common_pb2.REASON_LENGTH:
            assert len(got) == self.max_tokens[name]
        elif out.reason not in WELL | _EXPECTED and "no decode worker came back" not in out.detail:
            assert out.report.retries == _POLICY.max_retries, out
        if out.reason in (common_pb2.REASON_OVERLOADED, common_pb2.REASON_RATE_LIMITED):
            assert out.retry_after_s is not None
            assert out.retry_after_s > 0
            assert not got

    def pick(self, data: st.DataObject) -> ScriptedWorker:
        return self.workers[data.draw(st.sampled_from(sorted(self.workers)))]

    @initialize(prefill=st.integers(0, 2), decode=st.integers(1, 2))
    def some_workers_are_there(self, prefill: int, decode: int) -> None:
        for _ in range(prefill):
            self.worker_joins("prefill")
        for _ in range(decode):
            self.worker_joins("decode")

    @rule(role=st.sampled_from(["prefill", "decode"]))
    def worker_joins(self, role: Role) -> None:
        if len(self.workers) < 4:
            self.names += 1
            name = f"{role}-{self.names}"
            worker = ScriptedWorker(name, role, self.max_tokens, self.written, self.feed)
            self.workers[name] = worker
            self.feed(WorkerJoined(name, role))
            self.feed(worker.credits())

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def worker_is_lost(self, data: st.DataObject) -> None:
        if data.draw(st.integers(0, 2)):
            return  # the other paths need workers that live for a while
        worker = self.pick(data)
        del self.workers[worker.worker_id]
        self.feed(WorkerLost(worker.worker_id))

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def session_is_cut(self, data: st.DataObject) -> None:
        if data.draw(st.integers(0, 2)):
            return
        old = self.pick(data)
        worker = ScriptedWorker(old.worker_id, old.role, self.max_tokens, self.written, self.feed)
        worker.draining = old.draining
        self.workers[old.worker_id] = worker
        self.feed(WorkerJoined(worker.worker_id, worker.role))
        self.feed(worker.credits())

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), resume=st.booleans())
    def operator_drains(self, data: st.DataObject, resume: bool) -> None:
        self.feed(DrainRequested(self.pick(data).worker_id, resume))

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), role=st.sampled_from(["prefill", "decode"]))
    def operator_flips(self, data: st.DataObject, role: Role) -> None:
        self.feed(FlipRequested(self.pick(data).worker_id, role))

    @rule(
        lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4),
        rank=st.integers(0, 1),
        deadline=st.sampled_from([None, None, None, 0.02]),
        tenant=st.sampled_from(["", "", "metered"]),
        first_token=st.integers(0, 2),
    )
    def requests_arrive(
        self, lengths: list[int], rank: int, deadline: float | None, tenant: str, first_token: int
    ) -> None:
        for max_tokens in lengths:
            self.names += 1
            name = f"r{self.names}"
            self.max_tokens[name] = max_tokens
            deadline_s = None if deadline is None else self.now_s + deadline
            keys = PrefixKeys.of([first_token] * PROMPT_TOKENS, 2)
            self.feed(
                RequestArrived(name, PROMPT_TOKENS, max_tokens, rank, deadline_s, tenant, keys)
            )

    @precondition(lambda self: self.lifecycle.requests)
    @rule(data=st.data())
    def client_cancels(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.lifecycle.requests)))
        reason = data.draw(
            st.sampled_from([common_pb2.REASON_CLIENT_GONE, common_pb2.REASON_STOP_STRING])
        )
        self.feed(CancelRequested(name, reason))

    @rule(seconds=st.sampled_from([0.01, 0.01, 2.0]))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds
        self.feed(Tick())

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def worker_tells_of_itself(self, data: st.DataObject) -> None:
        worker = self.pick(data)
        self.feed(worker.credits())
        self.feed(
            LoadChanged(
                worker.worker_id,
                running_requests=len(worker.jobs),
                waiting_prefill_tokens=data.draw(st.integers(0, 8)),
                prefill_tokens_per_s=data.draw(st.sampled_from([0.0, 20.0, 1000.0])),
                step_ms=data.draw(st.sampled_from([0.0, 1.0, 20.0])),
                step_requests=data.draw(st.integers(0, 3)),
                link_bytes_per_s=data.draw(st.sampled_from([0.0, 10.0, 1e6])),
                state_bytes_per_token=10.0,
            )
        )

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), token=st.integers(0, 2), reset=st.booleans())
    def worker_caches(self, data: st.DataObject, token: int, reset: bool) -> None:
        names = PrefixKeys.of([token] * PROMPT_TOKENS, 2).names
        worker_id = self.pick(data).worker_id
        states = [(names[1], names[1], 2)]
        self.feed(CacheChanged(worker_id, 2, reset, names[1:], (), states))

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
            Stayed(worker.worker_id, handle, common_pb2.REASON_CANCELLED),
        ]
        self.feed(data.draw(st.sampled_from(events)))

    @precondition(lambda self: any(w.commands for w in self.workers.values()))
    @rule(data=st.data(), refuse=st.sampled_from([False, False, False, True]))
    def worker_takes_a_command(self, data: st.DataObject, refuse: bool) -> None:
        busy = [w for w in self.workers.values() if w.commands]
        worker = data.draw(st.sampled_from(sorted(busy, key=lambda w: w.worker_id)))
        if refuse:
            worker.refuse(data.draw(st.sampled_from(REFUSALS)))
        else:
            worker.take_command()

    @precondition(lambda self: any(w.jobs for w in self.workers.values()))
    @rule(data=st.data())
    def worker_fails_a_request(self, data: st.DataObject) -> None:
        if data.draw(st.integers(0, 2)):
            return
        busy = [w for w in self.workers.values() if w.jobs]
        worker = data.draw(st.sampled_from(sorted(busy, key=lambda w: w.worker_id)))
        handle = data.draw(st.sampled_from(sorted(worker.jobs)))
        del worker.jobs[handle]
        reason = data.draw(st.sampled_from(REFUSALS))
        self.feed(Ended(worker.worker_id, handle, reason, "scripted"))

    @precondition(lambda self: self.workers)
    @rule(order=st.randoms(use_true_random=False), steps=st.integers(1, 30))
    def workers_run(self, order: Random, steps: int) -> None:
        for _ in range(steps):
            busy = sorted(name for name, w in self.workers.items() if w.busy)
            if not busy:
                return
            worker = self.workers[order.choice(busy)]
            if worker.commands and (not worker.jobs or order.random() < 0.5):
                worker.take_command()
            elif worker.jobs:
                worker.step(order.choice(sorted(worker.jobs)), order.randint(1, 3))
            else:
                worker.say_drained()

    @invariant()
    def every_live_request_is_listed(self) -> None:
        live = set(self.max_tokens) - set(self.finished)
        assert live == set(self.lifecycle.requests)

    def teardown(self) -> None:
        """Let every worker work off what it has: all ends well or is cancelled, nothing leaks."""
        for name in sorted(self.workers):
            self.feed(DrainRequested(name, resume=True))
        for _ in range(60):
            self.workers_run(Random(0), 30)
            for worker in list(self.workers.values()):
                self.feed(worker.credits())
            self.now_s += 2.0
            self.feed(Tick())
        assert not self.lifecycle.requests, "something waits for ever"
        assert not self.lifecycle.holdings.attempts
        assert all(not view.holds for view in self.lifecycle.fleet.all())
        assert set(self.finished) == set(self.max_tokens)
        self.feed(ShutDown())
        for name, finish in self.finished.items():
            explanation = self.lifecycle.explain(name)
            assert explanation is not None
            assert explanation.transitions[-1].reason == finish.reason
            assert explanation.lines()
        assert all(step.same for step in replay(self.log)), "a replay came out otherwise"


TestRouterMachine = RouterMachine.TestCase
TestRouterMachine.settings = settings(
    max_examples=80,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
