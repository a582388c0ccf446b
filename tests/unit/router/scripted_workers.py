"""Workers that do what the protocol says, one step at a time, each in its own stream's order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from protos.tandem.v1 import common_pb2
from protos.tandem.v1.handoff_pb2 import HandoffTicket
from protos.tandem.v1.inference_pb2 import HandoffReport
from router.core.events import (
    CreditsChanged,
    Drained,
    Ended,
    Event,
    Flipped,
    PrefillDone,
    Reserved,
    Role,
    StateArrived,
    Stayed,
    TokensArrived,
)
from router.core.instructions import (
    SendCancel,
    SendDrain,
    SendFlip,
    SendMigrate,
    SendPrefill,
    SendRenew,
    SendReserve,
    WorkerInstruction,
)

SLOTS = 3
TOKENS = 60
PROMPT_TOKENS = 4


@dataclass
class Job:
    """What a worker holds for one handle; it has `sent` tokens of the answer, or was given them.

    One that `moves` is to go where that ticket says.
    """

    request_id: str
    kind: str  # reserve | handoff | local
    sent: int
    stage: str = "new"
    growth: int = 0
    moves: HandoffTicket | None = None


@dataclass
class ScriptedWorker:
    """Tokens are numbered, so token i of every answer is i. `written` is shared by all workers: by
    handle whose state has reached decode, how many tokens of the answer came with it."""

    worker_id: str
    role: Role
    max_tokens: Mapping[str, int]
    written: dict[int, int]
    feed: Callable[[Event], None]
    jobs: dict[int, Job] = field(default_factory=dict)
    commands: list[WorkerInstruction] = field(default_factory=list)
    work_seen: int = 0
    draining: bool = False
    asked: bool = False  # to say when nothing is left

    def credits(self) -> CreditsChanged:
        held = sum(self._tokens(job) for job in self.jobs.values())
        free = 0 if self.draining else max(0, TOKENS - held)
        slots = 0 if self.draining else max(0, SLOTS - len(self.jobs))
        return CreditsChanged(
            self.worker_id, slots, free, TOKENS, SLOTS, free, self.work_seen, self.draining
        )

    def _tokens(self, job: Job) -> int:
        if job.kind == "handoff":
            return PROMPT_TOKENS + job.sent
        return PROMPT_TOKENS + self.max_tokens[job.request_id]

    @property
    def busy(self) -> bool:
        return bool(self.commands or self.jobs or self.asked)

    def refuse(self, reason: common_pb2.ReasonCode.ValueType) -> None:
        """Turn the next command down, if it is one that can be."""
        command = self.commands[0]
        if isinstance(command, SendReserve | SendPrefill):
            self.commands.pop(0)
            self.work_seen += 1
            self.feed(Ended(self.worker_id, command.handle, reason, "scripted"))
        else:
            self.take_command()

    def take_command(self) -> None:
        """Read one command and act on it."""
        match self.commands.pop(0):
            case SendCancel(_, handle):
                if self.jobs.pop(handle, None) is not None:
                    self.feed(Ended(self.worker_id, handle, common_pb2.REASON_CANCELLED))
            case SendReserve(_, handle, request_id, generated, growth):
                job = Job(request_id, "reserve", len(generated), growth=growth)
                self._accept(handle, job, generated)
            case SendPrefill(_, handle, request_id, ticket, generated):
                kind = "local" if ticket is None else "handoff"
                self._accept(handle, Job(request_id, kind, len(generated)), generated)
            case SendMigrate(_, handle, ticket):
                self._migrate(handle, ticket)
            case SendDrain(_, resume):
                self.draining = self.asked = not resume
                self.feed(self.credits())
            case SendFlip(_, role):
                if self.jobs or not self.draining:
                    reason = common_pb2.REASON_NOT_DRAINED
                    self.feed(Flipped(self.worker_id, self.role, reason, "scripted"))
                else:
                    self.role, self.draining = role, False
                    self.feed(Flipped(self.worker_id, role))
                    self.feed(self.credits())
            case SendRenew():
                pass  # nothing here runs out

    def _accept(self, handle: int, job: Job, generated: object) -> None:
        assert generated == tuple(range(job.sent)), "it goes on from the tokens that were sent"
        self.work_seen += 1
        if self.draining:
            self.feed(Ended(self.worker_id, handle, common_pb2.REASON_DRAINING, "scripted"))
        elif job.sent >= self.max_tokens[job.request_id]:
            self.feed(Ended(self.worker_id, handle, common_pb2.REASON_LENGTH))
        else:
            self.jobs[handle] = job

    def step(self, handle: int, count: int) -> None:
        """Do a little for one handle: at most `count` tokens."""
        job, name = self.jobs[handle], self.worker_id
        limit = self.max_tokens[job.request_id]
        if job.kind == "reserve" and job.stage == "new":
            job.stage = "reserved"
            ticket = HandoffTicket(reservation=handle, tokens=job.sent + job.growth)
            self.feed(Reserved(name, handle, ticket, 0.05))
        elif job.kind == "reserve" and job.stage == "reserved":
            if handle in self.written:
                job.stage, job.sent = "decoding", max(job.sent, self.written[handle])
                self.feed(StateArrived(name, handle, job.sent))
        elif job.kind == "handoff":
            self._hand_off(handle, job, limit)
        elif job.moves is not None and (
            count == 1 or job.stage == "left" or job.sent >= job.moves.tokens
        ):
            self._move(handle, job, job.moves)
        elif job.sent < limit:
            count = min(count, limit - job.sent)
            ids = list(range(job.sent, job.sent + count))
            job.sent += count
            self.feed(TokensArrived(name, [handle], [ids[0]], [count], ids))
        else:
            del self.jobs[handle]
            self.feed(Ended(name, handle, common_pb2.REASON_LENGTH))

    def _migrate(self, handle: int, ticket: HandoffTicket | None) -> None:
        job = self.jobs.get(handle)
        if job is None or job.stage == "left":
            return
        before, job.moves = job.moves, ticket
        if ticket is None and before is not None:
            self.feed(Stayed(self.worker_id, handle, common_pb2.REASON_CANCELLED, "scripted"))
        elif ticket is not None and job.sent > ticket.tokens:
            job.moves = None
            reason = common_pb2.REASON_OUT_OF_CAPACITY
            self.feed(Stayed(self.worker_id, handle, reason, "scripted"))

    def _move(self, handle: int, job: Job, ticket: HandoffTicket) -> None:
        """Its state is written first and said to be later: the target may be quicker."""
        if job.stage == "left":
            del self.jobs[handle]
            report = HandoffReport(kv_bytes=100, transfer_ms=1.0)
            reason = common_pb2.REASON_MIGRATED
            self.feed(Ended(self.worker_id, handle, reason, handoff=report))
        elif (job.sent + handle) % 5 == 0:
            job.moves = None
            reason = common_pb2.REASON_TRANSFER_FAILED
            self.feed(Stayed(self.worker_id, handle, reason, "scripted"))
        else:
            job.stage = "left"
            self.written[ticket.reservation] = job.sent

    def _hand_off(self, handle: int, job: Job, limit: int) -> None:
        """The first token may come before or after the state is written: decode may be quicker."""
        name = self.worker_id
        if job.stage in ("new", "half"):
            if (job.stage == "new") == (handle % 2 == 0):
                if not job.sent:
                    self.feed(TokensArrived(name, [handle], [0], [1], [0]))
            elif limit > 1:
                self.written[handle] = 1
            job.stage = "half" if job.stage == "new" else "done"
            return
        del self.jobs[handle]
        if limit == 1:
            self.feed(PrefillDone(name, handle, 1.0, None, 2))
            self.feed(Ended(name, handle, common_pb2.REASON_LENGTH))
        else:
            report = HandoffReport(kv_bytes=100, transfer_ms=1.0)
            self.feed(PrefillDone(name, handle, 1.0, report))

    def say_drained(self) -> None:
        """Answer a drain once nothing is left."""
        if self.asked and not self.jobs and not self.commands:
            self.asked = False
            self.feed(Drained(self.worker_id))
