"""Everything that can happen to the router, as data: the only input of the state machine.

Tickets and hand-off reports pass through untouched; the core never looks inside them.

What comes with every request has an `__init__` of its own and Final fields instead of being frozen:
that makes it ten times as quickly, because mypyc compiles no dataclass's `__init__`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from protos.tandem.v1 import common_pb2
from protos.tandem.v1.handoff_pb2 import HandoffTicket
from protos.tandem.v1.inference_pb2 import HandoffReport, SpeculationReport
from router.core.prefixes import PrefixKeys
from router.core.reasons import Reason
from router.core.tokens import TokenLogprob

Role: TypeAlias = Literal["prefill", "decode"]


@dataclass(slots=True, init=False)
class RequestArrived:
    """A valid request; `class_rank` 0 is the strictest class. `prefix` finds cached prefixes."""

    request_id: Final[str]
    prompt_tokens: Final[int]
    max_tokens: Final[int]
    class_rank: Final[int]
    deadline_s: Final[float | None]
    tenant: Final[str]
    prefix: Final[PrefixKeys | None]

    def __init__(
        self,
        request_id: str,
        prompt_tokens: int,
        max_tokens: int,
        class_rank: int = 0,
        deadline_s: float | None = None,
        tenant: str = "",
        prefix: PrefixKeys | None = None,
    ) -> None:
        self.request_id = request_id
        self.prompt_tokens = prompt_tokens
        self.max_tokens = max_tokens
        self.class_rank = class_rank
        self.deadline_s = deadline_s
        self.tenant = tenant
        self.prefix = prefix


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


@dataclass(slots=True, init=False)
class LoadChanged:
    """How busy a worker is, whoever gave it the work; what was not measured is 0."""

    worker_id: Final[str]
    running_requests: Final[int]
    waiting_prefill_tokens: Final[int]
    prefill_tokens_per_s: Final[float]
    step_ms: Final[float]
    step_requests: Final[int]
    step_tokens: Final[float]
    link_bytes_in_flight: Final[int]
    link_bytes_per_s: Final[float]
    state_bytes_per_token: Final[float]
    state_bytes_per_request: Final[int]

    def __init__(
        self,
        worker_id: str,
        running_requests: int = 0,
        waiting_prefill_tokens: int = 0,
        prefill_tokens_per_s: float = 0.0,
        step_ms: float = 0.0,
        step_requests: int = 0,
        step_tokens: float = 0.0,
        link_bytes_in_flight: int = 0,
        link_bytes_per_s: float = 0.0,
        state_bytes_per_token: float = 0.0,
        state_bytes_per_request: int = 0,
    ) -> None:
        self.worker_id = worker_id
        self.running_requests = running_requests
        self.waiting_prefill_tokens = waiting_prefill_tokens
        self.prefill_tokens_per_s = prefill_tokens_per_s
        self.step_ms = step_ms
        self.step_requests = step_requests
        self.step_tokens = step_tokens
        self.link_bytes_in_flight = link_bytes_in_flight
        self.link_bytes_per_s = link_bytes_per_s
        self.state_bytes_per_token = state_bytes_per_token
        self.state_bytes_per_request = state_bytes_per_request


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


@dataclass(slots=True, init=False)
class Reserved:
    """Decode has set memory aside."""

    worker_id: Final[str]
    handle: Final[int]
    ticket: Final[HandoffTicket]
    lease_s: Final[float]  # without state in that time it is given up; 0: never

    def __init__(
        self,
        worker_id: str,
        handle: int,
        ticket: HandoffTicket,
        lease_s: float = 0.0,
    ) -> None:
        self.worker_id = worker_id
        self.handle = handle
        self.ticket = ticket
        self.lease_s = lease_s


@dataclass(slots=True, init=False)
class TokensArrived:
    """The tokens of one engine step, in the columns of the wire (see worker.proto)."""

    worker_id: Final[str]
    handles: Final[Sequence[int]]
    first_indexes: Final[Sequence[int]]
    counts: Final[Sequence[int]]
    token_ids: Final[Sequence[int]]
    logprobs: Final[Sequence[TokenLogprob]]

    def __init__(
        self,
        worker_id: str,
        handles: Sequence[int],
        first_indexes: Sequence[int],
        counts: Sequence[int],
        token_ids: Sequence[int],
        logprobs: Sequence[TokenLogprob] = (),
    ) -> None:
        self.worker_id = worker_id
        self.handles = handles
        self.first_indexes = first_indexes
        self.counts = counts
        self.token_ids = token_ids
        self.logprobs = logprobs


@dataclass(slots=True, init=False)
class PrefillDone:
    """A prompt was read. With `handoff` its state was written and nothing is held any more."""

    worker_id: Final[str]
    handle: Final[int]
    prefill_ms: Final[float]
    handoff: Final[HandoffReport | None]
    cached_tokens: Final[int]

    def __init__(
        self,
        worker_id: str,
        handle: int,
        prefill_ms: float = 0.0,
        handoff: HandoffReport | None = None,
        cached_tokens: int = 0,
    ) -> None:
        self.worker_id = worker_id
        self.handle = handle
        self.prefill_ms = prefill_ms
        self.handoff = handoff
        self.cached_tokens = cached_tokens


@dataclass(slots=True, init=False)
class StateArrived:
    """Decode has accepted the state and decodes, from so many tokens of the answer on."""

    worker_id: Final[str]
    handle: Final[int]
    generated_tokens: Final[int]

    def __init__(
        self,
        worker_id: str,
        handle: int,
        generated_tokens: int = 0,
    ) -> None:
        self.worker_id = worker_id
        self.handle = handle
        self.generated_tokens = generated_tokens


@dataclass(slots=True, init=False)
class Ended:
    """A worker holds nothing for the handle any more."""

    worker_id: Final[str]
    handle: Final[int]
    reason: Final[Reason]
    detail: Final[str]
    speculation: Final[SpeculationReport | None]
    handoff: Final[HandoffReport | None]  # of the state that went elsewhere (REASON_MIGRATED)

    def __init__(
        self,
        worker_id: str,
        handle: int,
        reason: Reason,
        detail: str = "",
        speculation: SpeculationReport | None = None,
        handoff: HandoffReport | None = None,
    ) -> None:
        self.worker_id = worker_id
        self.handle = handle
        self.reason = reason
        self.detail = detail
        self.speculation = speculation
        self.handoff = handoff


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
