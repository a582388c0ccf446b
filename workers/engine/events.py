"""What an engine says, collected over one step: the unit that goes up to the router."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from protos.tandem.v1.common_pb2 import ReasonCode
from protos.tandem.v1.handoff_pb2 import HandoffTicket
from protos.tandem.v1.inference_pb2 import HandoffReport, SpeculationReport
from workers.engine.chosen import Chosen
from workers.engine.load import Load
from workers.state.prefix_cache import CacheChanges


@dataclass(slots=True, init=False)
class TokenRow:
    """New tokens of one request; the first of them is output token number `first_index`."""

    key: Final[int]
    first_index: Final[int]
    chosen: Final[tuple[Chosen, ...]]

    # One for each token: its own is compiled, which makes it quicker than one that is generated.
    def __init__(self, key: int, first_index: int, chosen: tuple[Chosen, ...]) -> None:
        self.key = key
        self.first_index = first_index
        self.chosen = chosen


@dataclass(frozen=True, slots=True)
class Reserved:
    key: int
    ticket: HandoffTicket
    lease_s: float = 0.0  # 0 is for ever


@dataclass(frozen=True, slots=True)
class PrefillDone:
    key: int
    prefill_ms: float
    handoff: HandoffReport | None  # None when no state was sent
    cached_tokens: int = 0  # prompt tokens that a cached prefix spared


@dataclass(frozen=True, slots=True)
class StateArrived:
    key: int
    generated_tokens: int = 0  # of the answer, that it has; it goes on with the next


@dataclass(frozen=True, slots=True)
class Ended:
    key: int
    reason: ReasonCode.ValueType
    detail: str = ""
    speculation: SpeculationReport | None = None  # None when nothing was decoded here
    handoff: HandoffReport | None = None  # of state that went to another worker as it decoded


@dataclass(frozen=True, slots=True)
class Stayed:
    """A request that was to go to another worker goes on here."""

    key: int
    reason: ReasonCode.ValueType
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Credits:
    """How much more the engine takes now."""

    request_slots: int
    free_tokens: int
    total_tokens: int
    total_slots: int = 0
    draining: bool = False  # nothing at all is taken


@dataclass(slots=True)
class StepEvents:
    """Events of one engine step, by kind, each in the order in which it happened."""

    tokens: list[TokenRow] = field(default_factory=list)
    reserved: list[Reserved] = field(default_factory=list)
    prefill_done: list[PrefillDone] = field(default_factory=list)
    state_arrived: list[StateArrived] = field(default_factory=list)
    ended: list[Ended] = field(default_factory=list)
    stayed: list[Stayed] = field(default_factory=list)
    credits: Credits | None = None  # set when they changed
    taken: list[int] = field(default_factory=list)  # keys of the work that the credits know of
    load: Load | None = None  # set when it is worth saying
    cache: CacheChanges | None = None
    drained: bool = False  # nothing is held any more, after a Drain

    def __bool__(self) -> bool:
        return bool(
            self.tokens
            or self.reserved
            or self.prefill_done
            or self.state_arrived
            or self.ended
            or self.stayed
            or self.credits
            or self.taken
            or self.load
            or self.cache
            or self.drained
        )
