"""What the engine remembers of one request while it holds memory for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

from protos.tandem.v1.common_pb2 import REASON_LENGTH, REASON_STOP_TOKEN, ReasonCode
from protos.tandem.v1.handoff_pb2 import HandoffTicket
from workers.engine.commands import WorkItem
from workers.telemetry import OpenSpan


class Stage(Enum):
    """Where a request is on this worker."""

    RESERVED = auto()  # memory set aside, state not here yet
    PREFILLING = auto()  # part of the prompt may have been read
    SENDING = auto()  # state on its way to another worker
    DECODING = auto()


@dataclass(slots=True)
class Sequence:
    """One request on one worker. `context_tokens` of it are in the state; `last_token` is not."""

    item: WorkItem
    stage: Stage
    blocks: tuple[int, ...]
    slot: int
    prompt: tuple[int, ...] = ()
    ticket: HandoffTicket | None = None
    context_tokens: int = 0
    last_token: int = -1
    output_tokens: int = 0
    prefill_started_s: float | None = None
    prefill_ms: float = 0.0
    sending_began_s: float = 0.0
    ending: ReasonCode.ValueType | None = field(
        default=None
    )  # end as soon as an aborted transfer lets go
    span: OpenSpan | None = None

    def append(self, token_id: int) -> ReasonCode.ValueType | None:
        """Count a newly chosen token; the reason if it is the request's last."""
        self.last_token = token_id
        self.output_tokens += 1
        sampling = self.item.sampling
        if token_id in sampling.stop_token_ids:
            return REASON_STOP_TOKEN
        if self.output_tokens >= sampling.max_tokens:
            return REASON_LENGTH
        return None
