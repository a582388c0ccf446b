"""One request inside the simulated engine."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from protos.tandem.v1.handoff_pb2 import HandoffTicket
from workers.engine.commands import WorkItem


class Stage(enum.Enum):
    """Where a request is."""

    READING = enum.auto()
    RESERVED = enum.auto()
    SENDING = enum.auto()
    DECODING = enum.auto()
    ENDED = enum.auto()


@dataclass(slots=True, eq=False)
class Sequence:
    """`held_tokens` of KV belong to it until it ends; `context` is the digest of all its tokens,
    of which `made_tokens` are of the answer."""

    item: WorkItem
    prompt: tuple[int, ...]
    context: int
    held_tokens: int = 0
    stage: Stage = Stage.READING
    ticket: HandoffTicket | None = None
    reservation: int = 0
    lease_end_s: float = 0.0
    unread_tokens: int = 0
    cached_tokens: int = 0
    made_tokens: int = 0
    last_token_id: int = 0
    started_s: float | None = None
    prefill_ms: float = 0.0
    made_here: list[int] = field(default_factory=list)  # the newest of the made tokens
    leaving: bool = False  # it goes on where the ticket says
    pause_s: float = 0.0  # when that begins, at the end of a step

    @property
    def key(self) -> int:
        return self.item.key

    @property
    def state_tokens(self) -> int:
        """What the state holds before the next token can be made: all but the last of an answer."""
        return len(self.prompt) + max(self.item.generated_tokens - 1, 0)

    @property
    def decoded_tokens(self) -> int:
        """What the state holds while it decodes."""
        return len(self.prompt) + self.made_tokens - 1

    @property
    def decode_steps(self) -> int:
        """Tokens that it made here, but for the one that ends reading a prompt."""
        read_here = not self.item.generated_tokens and not self.reservation
        return len(self.made_here) - read_here

    def made_since(self, known_tokens: int) -> list[int]:
        """Tokens of the answer that a state of so many tokens does not hold, but this one does."""
        return self.made_here[len(self.made_here) - (self.decoded_tokens - known_tokens) :]

    @property
    def read_tokens(self) -> int:
        """What of that was read, or cached."""
        return self.state_tokens - self.unread_tokens

    @property
    def most_tokens(self) -> int:
        """Tokens of KV that it may come to need on this worker."""
        if self.ticket is not None:
            return self.state_tokens
        return len(self.prompt) + self.item.sampling.max_tokens

    @property
    def urgency(self) -> tuple[bool, int, int]:
        """Lower goes first: prompts already begun, then by class, then by arrival."""
        return self.started_s is None, self.item.priority, self.item.key
