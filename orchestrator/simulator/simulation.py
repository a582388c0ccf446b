"""The event loop: the router's core on one side, simulated workers on the other, time in between.

The core is the very code of a live router. What a session, a dispatcher and a network do live is
done here: each event goes to the core in order, each of its instructions to the worker it names.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from orchestrator.autoscaler.decisions import Decision
from orchestrator.simulator.agenda import Agenda
from orchestrator.simulator.cluster import Cluster
from orchestrator.simulator.counts import CountPolicy
from orchestrator.simulator.garbage import Sweeper, swept_by_hand
from orchestrator.simulator.jobs import Job
from orchestrator.simulator.links import Flow
from orchestrator.simulator.observing import Observer
from orchestrator.simulator.pools import ROLES, Pools
from orchestrator.simulator.prefixes import TRACE_BLOCK_TOKENS
from orchestrator.simulator.recording import RequestRows, Sample, shares
from orchestrator.simulator.scenario import Moment
from orchestrator.simulator.trace import TraceRequest
from orchestrator.simulator.worker import Surroundings, Worker
from router.core.events import (
    Drained,
    DrainRequested,
    Event,
    FlipRequested,
    RequestArrived,
    Role,
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
    SendFlip,
    SendMigrate,
    SendPrefill,
    SendRenew,
    SendReserve,
)
from router.core.lifecycle import Lifecycle
from router.core.matching import MatchReport
from router.core.prefixes import PrefixKeys

_VERSION = "simulated"
_REQUESTS_IN_SPAN = 16.0

Watch: TypeAlias = Callable[[Event, float, Sequence[Instruction]], object]


@dataclass(frozen=True, slots=True)
class Settings:
    """How a simulation is run.

    Attributes:
        seed: of what is drawn.
        samples: of the cluster over time, about so many while requests arrive.
        period_s: how often the number of workers is looked at.
        every_token: advance each step by itself and tell the core of each token, for comparison.
        validate: have the core audit itself after each event.
    """

    seed: int = 0
    samples: int = 200
    period_s: float = 5.0
    every_token: bool = False
    validate: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it. `seconds` is virtual time until the last request ended."""

    requests: RequestRows
    samples: list[Sample]
    match: MatchReport
    seconds: float
    gpu_hours: float
    events: int
    decisions: tuple[Decision, ...] = ()


class Simulation:
    """One run of one trace on one cluster."""

    def __init__(
        self,
        cluster: Cluster,
        trace: Sequence[TraceRequest],
        scenario: Sequence[Moment] = (),
        settings: Settings | None = None,
        counts: CountPolicy | None = None,
        watch: Watch | None = None,
    ) -> None:
        """`counts` None keeps the numbers of workers; `watch` is given each event of the core with
        its time and what came of it."""
        self._cluster = cluster
        self._watch = watch
        self._trace = trace
        self._settings = settings or Settings()
        self._counts = counts
        # About as many requests as make some dozens of entries.
        span_s = _REQUESTS_IN_SPAN * max(trace[-1].at_s, 1.0) / len(trace)
        self._agenda = Agenda(span_s)
        self._core = Lifecycle(cluster.policy, validate=self._settings.validate)
        self._inbox: deque[Event] = deque()
        self._around = Surroundings(
            self._agenda,
            self._inbox.append,
            self._open_flow,
            random.Random(self._settings.seed),
            self._settings.every_token,
        )
        self._pools = Pools(cluster, self._agenda, self._make, self._joined, self._drain)
        self._ranks = {one.name: rank for rank, one in enumerate(cluster.policy.classes)}
        self._caches = any(kind.cached_block_tokens for kind in cluster.kinds.values())
        self._decoders: dict[int, Worker] = {}  # who has memory reserved, by handle
        self._rows = RequestRows()
        self._samples: list[Sample] = []
        self._sampled = self._core.match
        self._observer = Observer(trace, cluster.policy, self._pools, self._core, self._rows)
        self._decisions: list[Decision] = []
        self._tick_s: float | None = None
        self._disturbed = False  # something may wait for time to pass
        self._arrived = self._ended = 0
        self._arrival_s = math.inf  # of the next request
        self._last_end_s = 0.0
        self._events = 0
        self._scenario = deque(scenario)

    def run(self, progress: Callable[[int], object] = lambda _: None) -> Outcome:
        """Run until every request has ended; `progress` is told how many have, now and then."""
        self._pools.begin()
        self._drain_inbox()
        agenda = self._agenda
        self._arrival_s = self._trace[0].at_s
        span_s = max(self._trace[-1].at_s, 1.0)
        self._sample_s = span_s / self._settings.samples
        agenda.at(0.0, self._sample)
        if self._counts is not None:
            agenda.at(self._settings.period_s, self._look)
        if self._scenario:
            agenda.at(self._scenario[0].at_s, self._happen)
        with swept_by_hand() as sweeper:
            self._run_to_end(progress, sweeper)
        self._take_sample()
        progress(self._ended)
        return Outcome(
            self._rows,
            self._samples,
            self._core.match,
            self._last_end_s,
            self._pools.gpu_hours,
            self._events,
            tuple(self._decisions),
        )

    def _run_to_end(self, progress: Callable[[int], object], sweeper: Sweeper) -> None:
        agenda, inbox = self._agenda, self._inbox
        told, all_of_them = 0, len(self._trace)
        while self._ended < all_of_them:
            # Arrivals are in order already, so they do not go through the agenda.
            if not agenda.advance_before(self._arrival_s):
                if self._arrival_s == math.inf:
                    raise RuntimeError("nothing will happen any more, but requests have not ended")
                agenda.now_s = self._arrival_s
                self._arrive()
            if inbox:
                self._drain_inbox()
                if self._ended - told >= 1000:
                    told = self._ended
                    progress(told)
                    sweeper.note(told)

    def _drain_inbox(self) -> None:
        """Have the core take what was said, and do what it asks for, until nothing is left."""
        inbox, handle, execute = self._inbox, self._core.handle, self._execute
        now_s, watch, events = self._agenda.now_s, self._watch, 0
        while inbox:
            event = inbox.popleft()
            events += 1
            instructions = handle(event, now_s)
            if watch is not None:
                watch(event, now_s, instructions)
            for instruction in instructions:
                if type(instruction) is not Deliver:
                    execute(instruction)
            if type(event) is Drained and self._pools.drained(event.worker_id):
                self._gone(event.worker_id, "it was drained to go")
        self._events += events
        if self._disturbed:
            self._set_tick()

    def _execute(self, instruction: Instruction) -> None:
        if isinstance(instruction, Finish):
            self._finish(instruction)
            return
        if isinstance(instruction, Deliver):
            return
        worker = self._pools.workers.get(instruction.worker_id)
        if worker is None:
            return  # it died at this very moment; the core hears of it next
        match instruction:
            case SendPrefill():
                worker.prefill(self._prompt(instruction))
            case SendReserve():
                self._decoders[instruction.handle] = worker
                worker.reserve(self._answer(instruction))
            case SendCancel():
                self._decoders.pop(instruction.handle, None)
                worker.cancel(instruction.handle, instruction.reason)
            case SendMigrate():
                ticket = instruction.ticket
                worker.migrate(instruction.handle, 0 if ticket is None else ticket.reservation)
            case SendDrain():
                worker.drain(instruction.resume)
            case SendFlip():
                self._flip(worker, instruction.role)
            case SendRenew():
                pass  # reservations are for ever here

    def _finish(self, finish: Finish) -> None:
        number = int(finish.request_id)
        rank = self._ranks.get(self._trace[number].class_name, 0)
        self._rows.add(number, rank, finish)
        self._ended += 1
        self._last_end_s = self._agenda.now_s

    def _answer(self, order: SendReserve) -> Job:
        """An answer to be decoded whose prompt another worker reads."""
        request = self._trace[int(order.request_id)]
        made, wanted = len(order.generated), request.answer_tokens
        prompt = request.prompt_tokens + made
        # Prefill makes the first token of an answer that has none.
        first = made or 1
        return Job(
            order.handle,
            prompt,
            first,
            wanted - first,
            request.prompt_tokens + wanted,
            self._ranks.get(request.class_name, 0),
            False,
            prompt if made else prompt + 1,
        )

    def _prompt(self, order: SendPrefill) -> Job:
        """A prompt to be read, for another worker or for an answer that is decoded here."""
        request = self._trace[int(order.request_id)]
        made, wanted = len(order.generated), request.answer_tokens
        prompt, left = request.prompt_tokens + made, request.answer_tokens - made
        hands_off, hold = order.ticket is not None, request.prompt_tokens + wanted
        if hands_off:
            hold = prompt
            if made:
                left = 0
            elif left > 1:
                left = 1
            else:
                hands_off = False  # its first token is its last
        return Job(
            order.handle,
            prompt,
            made,
            left,
            hold,
            self._ranks.get(request.class_name, 0),
            hands_off,
            prompt + 1,
            request.block_names if self._caches else (),
        )

    def _open_flow(self, source: Worker, job: Job) -> Flow | None:
        handle = job.moves_to or job.handle
        sink = self._decoders.pop(handle, None)
        if sink is None or handle not in sink.jobs:
            return None

        def there(_: Flow) -> None:
            sink.arrived(handle, job)
            source.sent(job)

        latency_s = source.kind.link_latency_s
        return Flow(self._agenda, source.out_port, sink.in_port, there, latency_s)

    def _arrive(self) -> None:
        """The next requests of the trace."""
        trace, now_s, number = self._trace, self._agenda.now_s, self._arrived
        while number < len(trace) and (request := trace[number]).at_s <= now_s:
            self._inbox.append(
                RequestArrived(
                    str(number),
                    request.prompt_tokens,
                    request.answer_tokens,
                    self._ranks.get(request.class_name, 0),
                    prefix=self._prefix(request) if self._caches else None,
                )
            )
            number += 1
        self._arrived = number
        self._arrival_s = trace[number].at_s if number < len(trace) else math.inf

    def _prefix(self, request: TraceRequest) -> PrefixKeys | None:
        if not request.hash_ids:
            return None
        return PrefixKeys(range(request.prompt_tokens), TRACE_BLOCK_TOKENS, (), request.block_names)

    def _make(self, worker_id: str, role: Role) -> Worker:
        return Worker(worker_id, role, self._cluster.kinds[role], self._around)

    def _joined(self, worker: Worker) -> None:
        self._inbox.append(WorkerJoined(worker.worker_id, worker.role, _VERSION))
        worker.join()

    def _drain(self, worker_id: str) -> None:
        self._inbox.append(DrainRequested(worker_id))

    def _gone(self, worker_id: str, detail: str) -> None:
        """A worker is not there any more; another one takes its place if it is wanted."""
        self._pools.remove(worker_id).die()
        self._inbox.append(WorkerLost(worker_id, detail))
        self._disturbed = True
        self._pools.reconcile()

    def _flip(self, worker: Worker, role: Role) -> None:
        before = worker.role
        if worker.flip(role, self._cluster.kinds[role]):
            self._pools.flipped(worker.worker_id, before, role)
        else:
            self._pools.not_flipped(worker.worker_id)

    def _set_tick(self) -> None:
        """Have a Tick come when the core waits for time to pass."""
        due_s = self._core.next_deadline_s
        if due_s is not None and due_s != self._tick_s:
            self._tick_s = due_s
            self._agenda.at(due_s, self._tick)

    def _tick(self, _: int) -> None:
        self._tick_s = None
        self._inbox.append(Tick())

    def _look(self, _: int) -> None:
        """Ask how many workers are wanted."""
        agenda, pools = self._agenda, self._pools
        assert self._counts is not None
        change = self._counts(self._observer.observe(agenda.now_s, self._arrived), pools.wanted)
        for role, count in change.flips.items():
            for worker_id in pools.choose_to_flip(role, count):
                self._disturbed = True
                self._inbox.append(FlipRequested(worker_id, role))
        pools.change_wanted(change.counts)
        if change.decision is not None:
            self._decisions.append(change.decision)
        agenda.at(agenda.now_s + self._settings.period_s, self._look)

    def _happen(self, _: int) -> None:
        """The next moments of the scenario."""
        now_s = self._agenda.now_s
        while self._scenario and self._scenario[0].at_s <= now_s:
            self._do(self._scenario.popleft())
        if self._scenario:
            self._agenda.at(self._scenario[0].at_s, self._happen)

    def _do(self, moment: Moment) -> None:
        pools = self._pools
        match moment.kind:
            case "kill":
                names = [moment.worker] if moment.worker else self._fullest(moment)
                for name in names:
                    if name in pools.workers:
                        self._gone(name, "it was killed")
            case "drain" | "resume":
                self._disturbed = True
                self._inbox.append(DrainRequested(moment.worker, moment.kind == "resume"))
            case "flip":
                self._disturbed = True
                self._inbox.append(FlipRequested(moment.worker, moment.role))
            case "scale":
                pools.change_wanted({**pools.wanted, **dict(moment.counts)})
            case "gpus":
                pools.add_gpus(moment.count)

    def _fullest(self, moment: Moment) -> list[str]:
        here = [one for one in self._pools.workers.values() if one.role == moment.role]
        here.sort(key=lambda worker: (-len(worker.jobs), worker.worker_id))
        return [worker.worker_id for worker in here[: moment.count]]

    def _sample(self, _: int) -> None:
        self._take_sample()
        self._agenda.at(self._agenda.now_s + self._sample_s, self._sample)

    def _take_sample(self) -> None:
        pools, match = self._pools, self._core.match
        prefill, decode, ratio = shares(match.since(self._sampled))
        self._sampled = match
        queued = len(self._core.queue)
        self._samples.append(
            Sample(
                at_s=self._agenda.now_s,
                queued=queued,
                running=len(self._core.requests) - queued,
                finished=self._ended,
                prefill_serving=pools.serving["prefill"],
                decode_serving=pools.serving["decode"],
                starting=sum(pools.starting.values()),
                pending=sum(pools.pending(role) for role in ROLES),
                prefill_busy_share=prefill,
                decode_busy_share=decode,
                matched_ratio=ratio,
                gpus=pools.gpus_used,
            )
        )
