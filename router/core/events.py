"""Everything that can happen to the router, as data: the only input of the state machine.

Tickets and hand-off reports pass through untouched; the core never looks inside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from router.core.reasons import Reason
from router.core.tokens import TokenLogprob

if TYPE_CHECKING:
    from protos.tandem.v1.handoff_pb2 import HandoffTicket
    from protos.tandem.v1.inference_pb2 import HandoffReport, SpeculationReport

Role: TypeAlias = Literal["prefill", "decode"]


@dataclass(frozen=True, slots=True)
class RequestArrived:
    """A valid request; `class_rank` 0 is the strictest class."""

    request_id: str
    prompt_tokens: int
    max_tokens: int
    class_rank: int = 0
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True)
class CancelRequested:
    """The client, or the router on its behalf, wants no more tokens, and why."""

    request_id: str
    reason: Reason
    detail: str = ""


@dataclass(frozen=True, slots=True)
class WorkerJoined:
    """A session stands. Only workers of one `model_version` may hand state to each other."""

    worker_id: str
    role: Role
    model_version: str = ""


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """The session broke or the lease ran out: what the worker held is gone."""

    worker_id: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class CreditsChanged:
    """What a worker can take now, in absolute terms, as of when it sent this."""

    worker_id: str
    request_slots: int
    free_tokens: int
    total_tokens: int


@dataclass(frozen=True, slots=True)
class Reserved:
    """Decode has set memory aside."""

    worker_id: str
    handle: int
    ticket: HandoffTicket


@dataclass(frozen=True, slots=True)
class TokensArrived:
    """The tokens of one engine step, in the columns of the wire (see worker.proto)."""

    worker_id: str
    handles: Sequence[int]
    first_indexes: Sequence[int]
    counts: Sequence[int]
    token_ids: Sequence[int]
    logprobs: Sequence[TokenLogprob] = ()


@dataclass(frozen=True, slots=True)
class PrefillDone:
    """Prefill has written the state and holds nothing any more."""

    worker_id: str
    handle: int
    prefill_ms: float = 0.0
    handoff: HandoffReport | None = None
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class StateArrived:
    """Decode has accepted the state and decodes."""

    worker_id: str
    handle: int


@dataclass(frozen=True, slots=True)
class Ended:
    """A worker holds nothing for the handle any more."""

    worker_id: str
    handle: int
    reason: Reason
    detail: str = ""
    speculation: SpeculationReport | None = None


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed: deadlines may have run out."""


@dataclass(frozen=True, slots=True)
class ShutDown:
    """The router stops: everything ends now and nothing new is taken."""


Event: TypeAlias = (
    RequestArrived
    | CancelRequested
    | WorkerJoined
    | WorkerLost
    | CreditsChanged
    | Reserved
    | TokensArrived
    | PrefillDone
    | StateArrived
    | Ended
    | Tick
    | ShutDown
)
