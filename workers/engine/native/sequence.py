"""What the engine remembers of one request from its acceptance to its end."""

from __future__ import annotations

from collections.abc import Sequence as ListOf
from dataclasses import dataclass, field
from enum import Enum, auto

from torch import Tensor

from protos.tandem.v1.common_pb2 import ReasonCode
from protos.tandem.v1.handoff_pb2 import HandoffTicket
from protos.tandem.v1.inference_pb2 import SpeculationReport
from workers.engine.commands import WorkItem
from workers.engine.sampling.state import SamplingState
from workers.telemetry import OpenSpan


class Stage(Enum):
    """Where a request is on this worker."""

    WAITING = auto()  # holds no memory: new, or preempted
    RESERVED = auto()  # memory set aside, state not here yet
    PREFILLING = auto()  # part of the prompt may have been read
    SENDING = auto()  # state on its way to another worker
    DECODING = auto()


@dataclass(slots=True)
class SpeculationCounts:
    """Decode steps of one request and, by draft position, how often it was tried and accepted."""

    steps: int = 0
    drafted: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)

    def add(self, drafted: int, accepted: int) -> None:
        """Count one step whose first `accepted` of `drafted` drafts were right.

        A position counts as tried when all before it were accepted: the ratio is the conditional
        acceptance of SPEED-Bench.
        """
        self.steps += 1
        while len(self.drafted) < drafted:
            self.drafted.append(0)
            self.accepted.append(0)
        for position in range(min(accepted + 1, drafted)):
            self.drafted[position] += 1
        for position in range(accepted):
            self.accepted[position] += 1

    def report(self) -> SpeculationReport | None:
        """The counts as a message; None when nothing was decoded."""
        if not self.steps:
            return None
        return SpeculationReport(steps=self.steps, drafted=self.drafted, accepted=self.accepted)


@dataclass(slots=True, eq=False)
class Sequence:
    """One request on one worker.

    `context_tokens` of prompt and output are in the state. Of those, the last `pending` are in the
    slot's window and not yet folded into its conv and SSM state. The last output token is never
    in the state: feeding it is what the next step begins with.
    """

    item: WorkItem
    stage: Stage
    arrival: int
    sampling: SamplingState
    prompt: tuple[int, ...] = ()
    ticket: HandoffTicket | None = None
    context_tokens: int = 0
    pending: int = 0
    cached_tokens: int = 0
    # Hidden states [n, d] of the last n context tokens that the MTP block has not seen yet.
    undrafted: Tensor | None = None
    speculation: SpeculationCounts = field(default_factory=SpeculationCounts)
    prefill_started_s: float | None = None
    prefill_ms: float = 0.0
    handing_off: bool = False  # the network may read its memory
    leaving: bool = False  # and it decodes, or did until its state was all that was left to send
    # How it ends when an aborted hand-off lets go.
    ending: tuple[ReasonCode.ValueType, str] | None = None
    span: OpenSpan | None = None

    @property
    def output(self) -> list[int]:
        """Tokens made so far; the last one is yet to be fed."""
        return self.sampling.output_token_ids

    @property
    def urgency(self) -> tuple[int, int]:
        """Smaller goes first: strictest class, then longest here."""
        return (self.item.priority, self.arrival)

    @property
    def to_read(self) -> ListOf[int]:
        """Tokens that the state must hold before the next token can be made.

        After a preemption that is all output but the last token as well.
        """
        return (*self.prompt, *self.output[:-1])

    def tokens_from(self, position: int) -> ListOf[int]:
        """Prompt and output tokens from an absolute position on, up to the one to be fed next."""
        read = len(self.prompt)
        if position >= read:
            return self.output[position - read : self.context_tokens + 1 - read]
        return (*self.prompt[position:], *self.output[: self.context_tokens + 1 - read])

    @property
    def unread_tokens(self) -> int:
        """How many of `to_read` are still to be read."""
        return len(self.prompt) + max(len(self.output) - 1, 0) - self.context_tokens

    @property
    def room(self) -> int:
        """Output tokens that may still be made."""
        return self.item.sampling.max_tokens - len(self.output)
