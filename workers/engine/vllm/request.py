"""One request inside a vLLM worker: where it is, and which tokens vLLM is to make again.

vLLM knows no request that goes on in the middle of its answer. Greedily, prompt and answer so far
are simply a longer prompt. What depends on more than the last logits (random numbers by output
index, penalties on the answer, a grammar) is made again from the prompt, with the same seed, and
what the client has is compared and left out.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from protos.tandem.v1.handoff_pb2 import HandoffTicket
from workers.engine.commands import WorkItem
from workers.engine.vllm.core import CoreRequest


class Stage(enum.Enum):
    """Where a request is."""

    RESERVED = enum.auto()  # decode: waits for the offer of prefill
    PULLING = enum.auto()  # decode: vLLM has it, no token yet
    READING = enum.auto()  # its prompt is being read here
    OFFERED = enum.auto()  # prefill: decode may read the state
    DECODING = enum.auto()
    ENDED = enum.auto()


@dataclass(slots=True, eq=False)
class Request:
    """`made` are the tokens of the answer that exist already; `known` those of them that vLLM
    makes again, of which it has made `compared`; `next_index` is that of its next new token."""

    item: WorkItem
    prompt: tuple[int, ...]
    made: tuple[int, ...]
    stage: Stage
    held_tokens: int
    began_s: float
    ticket: HandoffTicket | None = None
    reservation: int = 0
    lease_end_s: float = 0.0
    core_name: str = ""
    known: tuple[int, ...] = ()
    compared: int = 0
    next_index: int = 0
    prefill_ms: float = 0.0
    offered_s: float = 0.0
    cached_tokens: int = 0
    offer_from: str = ""  # decode: whom to answer when the state is here
    steps: int = 0
    orders: int = field(default=0)  # how often it was given to vLLM

    @property
    def key(self) -> int:
        return self.item.key

    @property
    def resumable(self) -> bool:
        """Whether prompt and answer so far, as one prompt, lead to the same next token."""
        return self.item.sampling.plain

    @property
    def read_tokens(self) -> tuple[int, ...]:
        """What prefill reads for a hand-off, and decode then takes as read."""
        return self.prompt + (self.made[:-1] if self.resumable else ())

    def new_name(self) -> str:
        """A name that vLLM has not heard before."""
        self.orders += 1
        self.core_name = f"{self.key}-{self.orders}"
        return self.core_name

    def to_read(self) -> CoreRequest:
        """For prefill: read the prompt, choose one token, keep the state."""
        return self._order(self.read_tokens, max_tokens=1, keep=True)

    def to_pull(self, first_token: int | None, transfer: str) -> CoreRequest:
        """For decode: go on from the state that prefill keeps. vLLM chooses the last token that
        the client has once more, because the state does not hold it."""
        made = self.made or (() if first_token is None else (first_token,))
        self.known = made[-1:] if self.resumable else made
        self.compared = 0
        self.next_index = len(made)
        left = self.item.sampling.max_tokens - (len(made) - len(self.known))
        return self._order(self.read_tokens, max_tokens=left, transfer=transfer)

    def to_answer(self) -> CoreRequest:
        """Read the prompt here and go on decoding."""
        self.compared = 0
        self.next_index = len(self.made)
        if self.resumable:
            self.known = ()
            left = self.item.sampling.max_tokens - len(self.made)
            return self._order(self.prompt + self.made, max_tokens=left)
        self.known = self.made
        return self._order(self.prompt, max_tokens=self.item.sampling.max_tokens)

    def to_mend(self, made: tuple[int, ...]) -> CoreRequest:
        """Go on from what the client has although vLLM chose otherwise the second time."""
        self.known, self.compared, self.next_index = (), 0, len(made)
        left = self.item.sampling.max_tokens - len(made)
        return self._order(self.prompt + made, max_tokens=left)

    def _order(
        self, token_ids: tuple[int, ...], *, max_tokens: int, keep: bool = False, transfer: str = ""
    ) -> CoreRequest:
        return CoreRequest(
            name=self.new_name(),
            token_ids=token_ids,
            sampling=self.item.sampling,
            max_tokens=max_tokens,
            priority=self.item.priority,
            traceparent=self.item.traceparent,
            keep=keep,
            transfer=transfer,
        )
