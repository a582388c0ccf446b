"""Everything that can happen to the router, as data: the only input of the state machine.

Tickets and hand-off reports pass through untouched; the core never looks inside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from protos.tandem.v1 import common_pb2
from protos.tandem.v1.handoff_pb2 import HandoffTicket
from protos.tandem.v1.inference_pb2 import HandoffReport, SpeculationReport
from router.core.prefixes import PrefixKeys
from router.core.reasons import Reason
from router.core.tokens import TokenLogprob

Role: TypeAlias = Literal["prefill", "decode"]


@dataclass(frozen=True, slots=True)
class RequestArrived:
    """A valid request; `class_rank` 0 is the strictest class. `prefix` finds cached prefixes."""

    request_id: str
    prompt_tokens: int
    max_tokens: int
    class_rank: int = 0
    deadline_s: float | None = None
    tenant: str = ""
    prefix: PrefixKeys | None = None


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
    """What a worker takes from this router, as of the first `work_seen` pieces of work.

    One request may have `all_free_tokens` where nothing else of this router is; 0 is no more than
    `free_tokens`. With `total_slots` 0 the worker has as many as it ever offered.
    """

    worker_id: str
    request_slots: int
    free_tokens: int
    total_tokens: int
    total_slots: int = 0
    all_free_tokens: int = 0
    work_seen: int = 0
    draining: bool = False


@dataclass(frozen=True, slots=True)
class LoadChanged:
    """How busy a worker is, whoever gave it the work; what was not measured is 0."""

    worker_id: str
    running_requests: int = 0
    waiting_prefill_tokens: int = 0
    prefill_tokens_per_s: float = 0.0
    step_ms: float = 0.0
    step_requests: int = 0
    step_tokens: float = 0.0
    link_bytes_in_flight: int = 0
    link_bytes_per_s: float = 0.0
    state_bytes_per_token: float = 0.0
    state_bytes_per_request: int = 0


@dataclass(frozen=True, slots=True)
class CacheChanged:
    """What came into a worker's prefix cache and what went; with `reset` it begins anew.

    States are (name, name of their full blocks, tokens).
    """

    worker_id: str
    block_tokens: int
    reset: bool = False
    stored_blocks: Sequence[int] = ()
    removed_blocks: Sequence[int] = ()
    stored_states: Sequence[tuple[int, int, int]] = ()
    removed_states: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Reserved:
    """Decode has set memory aside."""

    worker_id: str
    handle: int
    ticket: HandoffTicket
    lease_s: float = 0.0  # without state in that time it is given up; 0: never


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
    """A prompt was read. With `handoff` its state was written and nothing is held any more."""

    worker_id: str
    handle: int
    prefill_ms: float = 0.0
    handoff: HandoffReport | None = None
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class StateArrived:
    """Decode has accepted the state and decodes, from so many tokens of the answer on."""

    worker_id: str
    handle: int
    generated_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Ended:
    """A worker holds nothing for the handle any more."""

    worker_id: str
    handle: int
    reason: Reason
    detail: str = ""
    speculation: SpeculationReport | None = None
    handoff: HandoffReport | None = None  # of the state that went elsewhere (REASON_MIGRATED)


@dataclass(frozen=True, slots=True)
class Stayed:
    """A request that was to go to another worker goes on here."""

    worker_id: str
    handle: int
    reason: Reason
    detail: str = ""


@dataclass(frozen=True, slots=True)
class DrainRequested:
    """An operator wants a worker to finish what it has and take no more; or, to `resume`, more."""

    worker_id: str
    resume: bool = False


@dataclass(frozen=True, slots=True)
class Drained:
    """Nothing is left on a worker, of any router: it can go without loss."""

    worker_id: str


@dataclass(frozen=True, slots=True)
class FlipRequested:
    """An operator, or the autoscaler, wants a worker to take the other role."""

    worker_id: str
    role: Role


@dataclass(frozen=True, slots=True)
class Flipped:
    """The role that a worker has after a Flip, and why it is not another one."""

    worker_id: str
    role: Role
    reason: Reason = common_pb2.REASON_UNSPECIFIED
    detail: str = ""


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
    | LoadChanged
    | CacheChanged
    | Reserved
    | TokensArrived
    | PrefillDone
    | StateArrived
    | Ended
    | Stayed
    | DrainRequested
    | Drained
    | FlipRequested
    | Flipped
    | Tick
    | ShutDown
)
