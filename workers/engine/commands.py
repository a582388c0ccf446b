"""What an engine is told. `key` names a request inside one worker; the server makes it."""

from __future__ import annotations

from dataclasses import dataclass

from protos.tandem.v1.common_pb2 import ReasonCode
from protos.tandem.v1.handoff_pb2 import HandoffTicket


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the tokens of one request are chosen; temperature 0 is greedy, top_k 0 keeps all."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    logprobs: bool = False


@dataclass(frozen=True, slots=True)
class WorkItem:
    """What an engine must know of a request besides its tokens."""

    key: int
    request_id: str
    sampling: Sampling
    prompt_tokens: int
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class Reserve:
    """Set memory aside for a request whose state another worker will send."""

    item: WorkItem


@dataclass(frozen=True, slots=True)
class Prefill:
    """Read a prompt; with a ticket hand its state off, without one go on decoding here."""

    item: WorkItem
    token_ids: tuple[int, ...]
    ticket: HandoffTicket | None


@dataclass(frozen=True, slots=True)
class Cancel:
    """Forget a request in whatever state it is, and free what it holds."""

    key: int
    reason: ReasonCode.ValueType


Command = Reserve | Prefill | Cancel
