"""Everything the state machine can ask of the shell around it: its only output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from protos.tandem.v1.handoff_pb2 import HandoffTicket
from protos.tandem.v1.inference_pb2 import HandoffReport, SpeculationReport
from router.core.events import Role
from router.core.reasons import Reason
from router.core.tokens import TokenLogprob


@dataclass(frozen=True, slots=True)
class SendReserve:
    """Ask a decode worker to set memory aside. `generated` were made by an earlier attempt, which
    may make up to `growth_tokens` more before its state comes."""

    worker_id: str
    handle: int
    request_id: str
    generated: Sequence[int] = ()
    growth_tokens: int = 0


@dataclass(frozen=True, slots=True)
class SendPrefill:
    """Have a worker read the prompt: into the ticket's memory, or without one for itself."""

    worker_id: str
    handle: int
    request_id: str
    ticket: HandoffTicket | None
    generated: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class SendCancel:
    """Have a worker drop what it holds for a handle."""

    worker_id: str
    handle: int
    reason: Reason


@dataclass(frozen=True, slots=True)
class SendRenew:
    """Tell decode that a reservation is still wanted."""

    worker_id: str
    handle: int


@dataclass(frozen=True, slots=True)
class SendMigrate:
    """Have a decode worker let a request go on where the ticket says; without one it is to stay."""

    worker_id: str
    handle: int
    ticket: HandoffTicket | None


@dataclass(frozen=True, slots=True)
class SendDrain:
    """Have a worker take no more work, or take work again."""

    worker_id: str
    resume: bool = False


@dataclass(frozen=True, slots=True)
class SendFlip:
    """Have a drained worker take a role."""

    worker_id: str
    role: Role


@dataclass(frozen=True, slots=True)
class Deliver:
    """Hand the next tokens of a request to its client; no index comes twice, none is left out."""

    request_id: str
    first_index: int
    token_ids: Sequence[int]
    logprobs: Sequence[TokenLogprob]


@dataclass(frozen=True, slots=True)
class Report:
    """Where the time of a request went. Moments are on the caller's clock; None: never reached."""

    arrived_s: float
    placed_s: float | None
    reserved_s: float | None
    ended_s: float
    queue_ms: float
    ttft_ms: float
    mean_itl_ms: float
    total_ms: float
    prefill_worker: str
    decode_worker: str
    prefill_ms: float
    handoff: HandoffReport | None
    cached_tokens: int
    speculation: SpeculationReport | None
    prompt_tokens: int
    completion_tokens: int
    retries: int = 0  # attempts that failed before
    migrations: int = 0  # how often it moved to another decode worker with its state


@dataclass(frozen=True, slots=True)
class Finish:
    """Tell the client that this was all. Comes exactly once for each request, after its tokens."""

    request_id: str
    reason: Reason
    detail: str
    report: Report
    retry_after_s: float | None = None  # when it may be worth trying again


WorkerInstruction: TypeAlias = (
    SendReserve | SendPrefill | SendCancel | SendRenew | SendMigrate | SendDrain | SendFlip
)
Instruction: TypeAlias = WorkerInstruction | Deliver | Finish
