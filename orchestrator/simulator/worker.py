"""One simulated worker: takes the router's commands, keeps time, and makes tokens on schedule.

Steps are put together as the native engine's scheduler does it: every request that decodes, and
prompts in what they leave of the step's tokens, or at least in a quarter of it. Steps that only
decode are advanced in one go until somebody joins or leaves. Whoever joins does so at the end of
the step that runs: where that end is known and nobody's answer ends with it, the batch is put
there at once, and nothing has to happen when the time comes.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.simulator.agenda import Agenda
from orchestrator.simulator.batch import Batch
from orchestrator.simulator.cluster import WorkerKind
from orchestrator.simulator.jobs import Job
from orchestrator.simulator.links import Flow, Port
from orchestrator.simulator.prefixes import PrefixCache
from orchestrator.simulator.reading import Chunks, ReadingQueue
from orchestrator.simulator.runs import Run, decode_run
from orchestrator.simulator.speculation import answer_steps
from orchestrator.simulator.words import WorkerWords
from protos.tandem.v1 import common_pb2
from router.core.events import Event, Role
from router.core.reasons import Reason

_LEAST_PREFILL_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a worker needs of the rest.

    Attributes:
        tell: takes events for the router, which acts on them after the worker is done.
        open_flow: a way for the state of a request to the worker that has reserved memory for it;
            None when there is no such worker any more.
        every_token: take each step by itself and tell the router of each token: the reference that
            closed forms are compared with.
    """

    agenda: Agenda
    tell: Callable[[Event], None]
    open_flow: Callable[[Worker, Job], Flow | None]
    rng: random.Random
    every_token: bool = False


class Worker:
    """Owns every request that it has accepted."""

    __slots__ = (
        "_agenda",
        "_answer_steps",
        "_around",
        "_asked_to_drain",
        "_batch",
        "_begun_s",
        "_busy",
        "_cache",
        "_called_s",
        "_chunks",
        "_decode_s",
        "_due_s",
        "_held_tokens",
        "_joining",
        "_leaving",
        "_reading",
        "_run",
        "_steps",
        "_version",
        "_words",
        "draining",
        "in_port",
        "jobs",
        "kind",
        "out_port",
        "role",
        "worker_id",
    )

    def __init__(self, worker_id: str, role: Role, kind: WorkerKind, around: Surroundings) -> None:
        self.worker_id = worker_id
        self.role = role
        self.kind = kind
        self.out_port = Port(kind.out_bytes_per_s)
        self.in_port = Port(kind.in_bytes_per_s)
        self.jobs: dict[int, Job] = {}
        self.draining = False
        self._asked_to_drain = False
        self._around = around
        self._agenda = around.agenda
        self._held_tokens = 0
        self._batch = Batch()
        self._cache = PrefixCache() if kind.cached_block_tokens else None
        self._reading = ReadingQueue(self._cache)
        self._joining: list[Job] = []
        self._leaving: list[Job] = []
        self._words = WorkerWords(worker_id, around.tell, kind)
        self._answer_steps = answer_steps(kind.times.acceptance_length, kind.draft_tokens)
        # What runs: `_steps` decode steps, or one step with chunks, after which `_due` comes. It
        # begins at `_begun_s`; where that is still to come, a step runs that the batch has counted.
        self._busy = False
        self._steps = 0
        self._run: Run | None = None
        self._chunks: Chunks | None = None
        self._begun_s = 0.0
        self._due_s = 0.0
        self._called_s = math.inf  # when the agenda calls, at the latest when it is due
        self._decode_s = 0.0  # of a step with chunks, what it would take without them
        self._version = 0

    @property
    def decoding(self) -> int:
        """Requests that make tokens."""
        return self._batch.count

    @property
    def held_tokens(self) -> int:
        """Of memory that its requests take."""
        return self._held_tokens

    @property
    def context_tokens(self) -> float:
        """Cached tokens of all requests that decode, when what runs began."""
        return self._batch.context_tokens

    def made_tokens(self) -> tuple[int, int]:
        """(requests that decode, tokens of their answers that are made)."""
        step, members = self._step_now(), self._batch.members()
        return len(members), sum(job.first_index + job.made_by(step) for job in members)

    def join(self) -> None:
        """Say what it takes, to a router that has just met it."""
        self._words.credits(holds=False, draining=False)
        if self._cache is not None:
            self._words.cache([], [], reset=True)

    def reserve(self, job: Job) -> None:
        """Set memory aside for a request whose prompt another worker reads."""
        if self._accept(job):
            self._words.reserved(job)

    def prefill(self, job: Job) -> None:
        """Read a prompt."""
        if self._accept(job):
            self._reading.add(job)
            self._wake()

    def cancel(self, handle: int, reason: Reason) -> None:
        """Let a request go, wherever it is."""
        job = self.jobs.get(handle)
        if job is None:
            return
        if job.decodes:
            if job not in self._leaving:
                self._take_out(job)
        elif job in self._joining:
            self._joining.remove(job)
        else:
            self._reading.remove(job)
        self._stop_flow(job)
        self._end(job, reason)

    def migrate(self, handle: int, reservation: int) -> None:
        """Let a request that decodes go on elsewhere, or with 0 for a reservation, have it stay.

        It pauses for all of its state: what would leave before that is not modelled.
        """
        job = self.jobs.get(handle)
        if job is None:
            return
        before, job.moves_to = job.moves_to, reservation
        if reservation and job.decodes:
            self._leaving.append(job)
            if self._is_ahead():
                self._wait()
            return
        job.moves_to = 0
        if reservation:
            self._words.stayed(job, common_pb2.REASON_OUT_OF_CAPACITY)
        elif before:
            if job.decodes:
                self._leaving.remove(job)
            else:
                self._stop_flow(job)
                self._joining.append(job)
            self._words.stayed(job, common_pb2.REASON_CANCELLED)
            self._wake()

    def drain(self, resume: bool) -> None:
        """Take no more work, and say so when nothing is left; or take work again."""
        self.draining = self._asked_to_drain = not resume
        self._words.credits(holds=bool(self.jobs), draining=self.draining)
        self._note_drained()

    def flip(self, role: Role, kind: WorkerKind) -> bool:
        """Take the other role, with `kind` of its pool; whether that was possible."""
        if self.jobs or not self.draining:
            reason, detail = common_pb2.REASON_NOT_DRAINED, "drain it first"
        elif kind.layout != self.kind.layout:
            reason = common_pb2.REASON_LAYOUT_MISMATCH
            detail = f"its layout is {self.kind.layout}, that of {role} workers {kind.layout}"
        else:
            self.role, self.kind, self.draining = role, kind, False
            self._words.flipped(role, kind)
            self._words.credits(holds=False, draining=False)
            return True
        self._words.not_flipped(self.role, reason, detail)
        return False

    def arrived(self, handle: int, sent: Job) -> None:
        """The state of a reservation is here, as it was sent."""
        job = self.jobs.get(handle)
        if job is None:
            return
        if sent.moves_to:
            job.go_on_from(sent)
        self._words.state_arrived(job)
        if not self._busy:
            self._joining.append(job)
            self._begin()
        elif self._is_ahead():
            self._decode(job)
            self._plan()
        else:
            self._joining.append(job)

    def sent(self, job: Job) -> None:
        """The state of a prompt is where it belongs."""
        flow = job.flow
        assert flow is not None
        job.flow = None  # it knows the job: the cycle would have to be searched for
        say = self._words.moved if job.moves_to else self._words.handed_off
        say(job, flow.total_bytes, flow.busy_s + self.kind.link_latency_s)
        self._forget(job)

    def die(self) -> None:
        """Stop dead. What it has made until now has been sent."""
        step = self._step_now()
        self._words.tokens([(job, job.made_by(step)) for job in self._batch.members()])
        self._version += 1
        self._busy = False
        for job in self.jobs.values():
            self._stop_flow(job)

    def _step_now(self) -> int:
        """Steps of the batch that have ended by this moment."""
        step, elapsed_s = self._batch.step, self._agenda.now_s - self._begun_s
        if elapsed_s < 0.0:
            return step - 1
        if self._run is not None and self._busy:
            step += min(self._run.finished(elapsed_s), self._steps)
        return step

    def _stop_flow(self, job: Job) -> None:
        if job.flow is not None:
            job.flow.stop()
            job.flow = None

    def _accept(self, job: Job) -> bool:
        self._words.work_seen += 1
        kind = self.kind
        full = (
            len(self.jobs) >= kind.max_requests
            or self._held_tokens + job.hold_tokens > kind.kv_tokens
        )
        if self.draining or full:
            reason = (
                common_pb2.REASON_DRAINING if self.draining else common_pb2.REASON_OUT_OF_CAPACITY
            )
            self._words.ended(job, reason)
            return False
        self.jobs[job.handle] = job
        self._held_tokens += job.hold_tokens
        return True

    def _end(self, job: Job, reason: Reason = common_pb2.REASON_LENGTH) -> None:
        self._words.ended(job, reason)
        self._forget(job)

    def _forget(self, job: Job) -> None:
        job.live = False
        del self.jobs[job.handle]
        self._held_tokens -= job.hold_tokens
        if self._asked_to_drain:
            self._note_drained()

    def _note_drained(self) -> None:
        if self._asked_to_drain and not self.jobs:
            self._asked_to_drain = False
            self._words.drained()

    def _wake(self) -> None:
        if not self._busy:
            self._begin()
        elif self._is_ahead():
            self._wait()

    def _is_ahead(self) -> bool:
        """Have the batch stand where the step that runs will leave it, if that can be said.

        It cannot while prompts are read, or when somebody's answer ends with that step.
        """
        run = self._run
        if run is None:
            return False
        elapsed_s = self._agenda.now_s - self._begun_s
        if elapsed_s < 0.0:
            return True
        steps = run.running(elapsed_s)
        if steps >= self._steps:
            return False
        self._begun_s += run.end_s(steps)
        self._batch.pass_steps(steps)
        return True

    def _wait(self) -> None:
        """Begin anew when the step that runs has ended, which the batch has counted."""
        self._run, self._steps = None, 0
        self._set_due(self._begun_s)

    def _take_out(self, job: Job) -> None:
        """A request that decodes leaves with the end of the step that runs."""
        if not self._is_ahead():
            self._leaving.append(job)
            return
        job.live = False
        self._batch.leave(job)
        if self._batch.count:
            self._plan()
        else:
            self._wait()

    def _begin(self) -> None:
        """Begin what can be begun."""
        for job in self._joining:
            self._decode(job)
        self._joining.clear()
        self._run = self._chunks = None
        self._begun_s = self._agenda.now_s
        self._busy = True
        if self._reading:
            self._set_due(self._begun_s + self._begin_chunks())
        elif self._batch.count:
            self._plan()
        else:
            self._busy = False

    def _plan(self) -> None:
        """Decode from `_begun_s` on until somebody's answer ends."""
        batch = self._batch
        steps = 1 if self._around.every_token else batch.steps_to_next_end()
        run = self._run = decode_run(
            self.kind.times, batch.count, batch.context_tokens, batch.growth_tokens, steps
        )
        steps = self._steps = run.steps
        self._set_due(self._begun_s + run.end_s(steps))

    def _set_due(self, due_s: float) -> None:
        """Have `_due` come; where the agenda calls before, it is told again then: whoever joins
        makes the next end later, so most changes of plan need no entry of their own."""
        self._due_s = due_s
        if due_s < self._called_s:
            self._called_s = due_s
            self._version += 1
            self._agenda.at(due_s, self._due, self._version)

    def _decode(self, job: Job) -> None:
        left = job.answer_tokens - job.made_tokens
        self._batch.join(job, self._answer_steps.draw(left, self._around.rng))

    def _begin_chunks(self) -> float:
        """A step that reads prompts, for all that decodes too; returns how long it takes."""
        kind, rows = self.kind, self._batch.count
        budget = max(
            kind.step_tokens - rows * (kind.draft_tokens + 1),
            int(kind.step_tokens * _LEAST_PREFILL_SHARE),
            1,
        )
        chunks = self._chunks = self._reading.chunks(budget, self._begun_s)
        self._steps = 1
        context = self._batch.context_tokens
        seconds = kind.times.step_s(rows, context, chunks.tokens, chunks.mean_context)
        # As the native engine measures it, which reads chunks before it decodes.
        self._decode_s = kind.times.step_s(rows, context) if rows else 0.0
        self._words.meter.read(chunks.tokens, seconds - self._decode_s)
        return seconds

    def _due(self, version: int) -> None:
        """The end of what ran."""
        if version != self._version:
            return
        if self._due_s > self._called_s:
            self._called_s = self._due_s
            self._agenda.at(self._due_s, self._due, version)
            return
        self._called_s = math.inf
        batch, run, chunks, steps = self._batch, self._run, self._chunks, self._steps
        finished: list[Job] = []
        if batch.count and steps:
            seconds = self._decode_s
            if run is not None:
                seconds = run.first_s + run.slope_s * (steps - 1)
            self._words.meter.decoded(batch.count, round(batch.growth_tokens), seconds)
            finished = batch.advance(steps)
        if self._leaving:
            moving = [job for job in self._leaving if job.live and job not in finished]
            gone = [(job, job.made_by(batch.step)) for job in moving]
            for job in self._leaving:
                if job not in finished:
                    batch.leave(job)
            self._leaving.clear()
            self._words.tokens(gone)
            for job in moving:
                self._move(job)
        rows = [(job, job.answer_tokens) for job in finished]
        if self._around.every_token:
            rows += [(job, job.made_by(batch.step)) for job in batch.members()]
        read = [] if chunks is None else self._end_chunks(chunks, rows)
        if rows:
            self._words.tokens(rows)
        for job in read:
            self._end_reading(job)
        for job in finished:
            self._end(job)
        self._begin()
        if finished or chunks is not None:
            self._words.changed(self._agenda.now_s)
        if read and self._cache is not None:
            self._words.cache(*self._cache.take_changes())

    def _end_chunks(self, chunks: Chunks, rows: list[tuple[Job, int]]) -> list[Job]:
        """Returns the prompts that are read; their tokens are added to `rows`."""
        done = []
        if self._cache is not None:
            free_tokens = self.kind.kv_tokens - self._held_tokens
            self._cache.most_blocks = free_tokens // self.kind.cached_block_tokens
        for job in self._reading.read(chunks, self._agenda.now_s):
            if job.hands_off:
                self._hand_off(job)
            if job.read_tokens == job.prompt_tokens:
                done.append(job)
                if job.answer_tokens:
                    job.made_tokens = 1
                    rows.append((job, 1))
        return done

    def _move(self, job: Job) -> None:
        """A request that has stopped decoding here sends its state to where it goes on."""
        job.live = False
        left = self.jobs[job.handle] = job.moving(self._batch.step)
        left.live, left.flow = True, self._around.open_flow(self, left)
        if left.flow is not None:  # else the router will say that it is to stay
            left.flow.add(self.kind.times.handoff_bytes(left.context_tokens), is_last=True)

    def _hand_off(self, job: Job) -> None:
        """Send what has been read; the part of the state that does not grow goes last."""
        if job.flow is None:
            job.flow = self._around.open_flow(self, job)
        flow, times = job.flow, self.kind.times
        if flow is None:
            return  # the router will cancel it
        ready, is_last = times.handoff_bytes(job.read_tokens), not job.unread_tokens
        if not is_last:
            ready -= times.handoff_bytes(0.0)
        flow.add(ready - flow.total_bytes, is_last=is_last)

    def _end_reading(self, job: Job) -> None:
        """A prompt is read: it goes on elsewhere, has all it wanted, or decodes here."""
        if job.hands_off:
            return
        self._words.prompt_read(job)
        if job.answer_tokens == 1:
            self._end(job)
        else:
            self._decode(job)
