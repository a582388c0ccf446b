"""Everything the state machine can ask of the shell around it: its only output.

Made as events are, see there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from protos.tandem.v1.handoff_pb2 import HandoffTicket
from protos.tandem.v1.inference_pb2 import HandoffReport, SpeculationReport
from router.core.events import Role
from router.core.reasons import Reason
from router.core.tokens import TokenLogprob


@dataclass(slots=True, init=False)
class SendReserve:
    """Ask a decode worker to set memory aside. `generated` were made by an earlier attempt, which
    may make up to `growth_tokens` more before its state comes."""

    worker_id: Final[str]
    handle: Final[int]
    request_id: Final[str]
    generated: Final[Sequence[int]]
    growth_tokens: Final[int]

    def __init__(
        self,
        worker_id: str,
        handle: int,
        request_id: str,
        generated: Sequence[int] = (),
        growth_tokens: int = 0,
    ) -> None:
        self.worker_id = worker_id
        self.handle = handle
        self.request_id = request_id
        self.generated = generated
        self.growth_tokens = growth_tokens


@dataclass(slots=True, init=False)
class SendPrefill:
    """Have a worker read the prompt: into the ticket's memory, or without one for itself."""

    worker_id: Final[str]
    handle: Final[int]
    request_id: Final[str]
    ticket: Final[HandoffTicket | None]
    generated: Final[Sequence[int]]

    def __init__(
        self,
        worker_id: str,
        handle: int,
        request_id: str,
        ticket: HandoffTicket | None,
        generated: Sequence[int] = (),
    ) -> None:
        self.worker_id = worker_id
        self.handle = handle
        self.request_id = request_id
        self.ticket = ticket
        self.generated = generated


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


@dataclass(slots=True, init=False)
class Deliver:
    """Hand the next tokens of a request to its client; no index comes twice, none is left out."""

    request_id: Final[str]
    first_index: Final[int]
    token_ids: Final[Sequence[int]]
    logprobs: Final[Sequence[TokenLogprob]]

    def __init__(
        self,
        request_id: str,
        first_index: int,
        token_ids: Sequence[int],
        logprobs: Sequence[TokenLogprob],
    ) -> None:
        self.request_id = request_id
        self.first_index = first_index
        self.token_ids = token_ids
        self.logprobs = logprobs


@dataclass(slots=True, init=False)
class Report:
    """Where the time of a request went. Moments are on the caller's clock; None: never reached."""

    arrived_s: Final[float]
    placed_s: Final[float | None]
    reserved_s: Final[float | None]
    ended_s: Final[float]
    queue_ms: Final[float]
    ttft_ms: Final[float]
    mean_itl_ms: Final[float]
    total_ms: Final[float]
    prefill_worker: Final[str]
    decode_worker: Final[str]
    prefill_ms: Final[float]
    handoff: Final[HandoffReport | None]
    cached_tokens: Final[int]
    speculation: Final[SpeculationReport | None]
    prompt_tokens: Final[int]
    completion_tokens: Final[int]
    retries: Final[int]  # attempts that failed before
    migrations: Final[int]  # how often it moved to another decode worker with its state

    def __init__(
        self,
        arrived_s: float,
        placed_s: float | None,
        reserved_s: float | None,
        ended_s: float,
        queue_ms: float,
        ttft_ms: float,
        mean_itl_ms: float,
        total_ms: float,
        prefill_worker: str,
        decode_worker: str,
        prefill_ms: float,
        handoff: HandoffReport | None,
        cached_tokens: int,
        speculation: SpeculationReport | None,
        prompt_tokens: int,
        completion_tokens: int,
        retries: int = 0,
        migrations: int = 0,
    ) -> None:
        self.arrived_s = arrived_s
        self.placed_s = placed_s
        self.reserved_s = reserved_s
        self.ended_s = ended_s
        self.queue_ms = queue_ms
        self.ttft_ms = ttft_ms
        self.mean_itl_ms = mean_itl_ms
        self.total_ms = total_ms
        self.prefill_worker = prefill_worker
        self.decode_worker = decode_worker
        self.prefill_ms = prefill_ms
        self.handoff = handoff
        self.cached_tokens = cached_tokens
        self.speculation = speculation
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = completion_tokens
        self.retries = retries
        self.migrations = migrations


@dataclass(slots=True, init=False)
class Finish:
    """Tell the client that this was all. Comes exactly once for each request, after its tokens."""

    request_id: Final[str]
    reason: Final[Reason]
    detail: Final[str]
    report: Final[Report]
    retry_after_s: Final[float | None]  # when it may be worth trying again

    def __init__(
        self,
        request_id: str,
        reason: Reason,
        detail: str,
        report: Report,
        retry_after_s: float | None = None,
    ) -> None:
        self.request_id = request_id
        self.reason = reason
        self.detail = detail
        self.report = report
        self.retry_after_s = retry_after_s


WorkerInstruction: TypeAlias = (
    SendReserve | SendPrefill | SendCancel | SendRenew | SendMigrate | SendDrain | SendFlip
)
Instruction: TypeAlias = WorkerInstruction | Deliver | Finish
