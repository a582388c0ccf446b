"""What the router knows of one request: its state, the attempt that runs, the tokens so far.

A request is what the client sees, an attempt is one try to run it on a pair of workers. Handles
belong to attempts, so what a worker says about an earlier attempt cannot touch a later one.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Final

from protos.tandem.v1 import common_pb2
from protos.tandem.v1.inference_pb2 import HandoffReport, SpeculationReport
from router.core.events import Ended
from router.core.instructions import Report
from router.core.placement import Candidate
from router.core.prefix_index import NO_HITS, Hits
from router.core.prefixes import PrefixKeys
from router.core.reasons import WANTED, WELL, Reason
from router.core.tokens import Chunk, TokenOrder

# Of one request, how much of its story is kept: the first states and the latest ones.
_KEPT_TRANSITIONS = 64
_KEPT_DECISIONS = 8
_NOBODY: frozenset[str] = frozenset()


class State(enum.StrEnum):
    """Where a request is. The last three are ends."""

    QUEUED = "queued"
    RESERVED = "reserved"
    PREFILLING = "prefilling"
    HANDING_OFF = "handing_off"
    DECODING = "decoding"
    MIGRATING = "migrating"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"


def end_state(reason: Reason) -> State:
    """The end that a reason leads to."""
    if reason in WELL:
        return State.FINISHED
    return State.CANCELLED if reason in WANTED else State.FAILED


class Cause(enum.StrEnum):
    """What moved a request from one state to the next."""

    ARRIVED = "arrived"
    PLACED = "placed on a prefill and a decode worker"
    PLACED_LOCALLY = "placed on a decode worker alone"
    TICKET = "decode reserved memory"
    PREFILL_DONE = "prefill wrote the state"
    STATE_ARRIVED = "decode accepted the state"
    DECODE_TOKENS = "decode sent tokens"
    YIELDS = "it cannot meet its TTFT target any more; those that can go first"
    REFUSED = "a worker took less than its credits said"
    LEAVES = "its worker is to be emptied; it goes on at another one"
    MOVED = "its state has left for another worker"
    STAYS = "it goes on where it was"
    RETRIED = "its attempt failed; it goes on from the tokens made so far"
    ENDED = "ended"


@dataclass(slots=True, init=False)
class Transition:
    """One step of a request's life, kept so that it can be explained later."""

    at_s: Final[float]
    state: Final[State]
    cause: Final[Cause]
    reason: Final[Reason]
    detail: Final[str]

    def __init__(
        self,
        at_s: float,
        state: State,
        cause: Cause,
        reason: Reason = common_pb2.REASON_UNSPECIFIED,
        detail: str = "",
    ) -> None:
        self.at_s = at_s
        self.state = state
        self.cause = cause
        self.reason = reason
        self.detail = detail


@dataclass(slots=True, init=False)
class Decision:
    """Where an attempt went and what the alternatives were."""

    at_s: Final[float]
    chosen: Final[Candidate]
    candidates: Final[tuple[Candidate, ...]]
    waited_s: Final[tuple[float, ...]]  # in the order of Blocked

    def __init__(
        self,
        at_s: float,
        chosen: Candidate,
        candidates: tuple[Candidate, ...],
        waited_s: tuple[float, ...],
    ) -> None:
        self.at_s = at_s
        self.chosen = chosen
        self.candidates = candidates
        self.waited_s = waited_s


@dataclass(slots=True, init=False, eq=False)
class Side:
    """One worker's part in an attempt. Credits are held until it is closed."""

    worker_id: str
    sent: bool  # the worker knows of the handle
    closed: bool  # the worker holds nothing for the handle any more
    cancelled: bool  # and was told to let go

    def __init__(
        self,
        worker_id: str,
        sent: bool = False,
    ) -> None:
        self.worker_id = worker_id
        self.sent = sent
        self.closed = False
        self.cancelled = False


@dataclass(slots=True, init=False, eq=False)
class Attempt:
    """One try of a request. Without `prefill` the decode worker reads the prompt itself.

    `base` tokens of the answer were made before it: with any, prefill sends no token.
    """

    handle: int
    request: Request
    decode: Side
    prefill: Side | None
    base: int
    state_arrived: bool
    leaving: bool  # decode was told to let it go, and has not said yet how that went
    moved: bool  # it took over from an attempt whose worker is to be emptied
    patience_s: float  # how long its workers may say nothing while it is handed over
    due_s: float  # when they have said nothing for too long

    def __init__(
        self,
        handle: int,
        request: Request,
        decode: Side,
        prefill: Side | None,
        base: int = 0,
        moved: bool = False,
    ) -> None:
        self.handle = handle
        self.request = request
        self.decode = decode
        self.prefill = prefill
        self.base = base
        self.state_arrived = False
        self.leaving = False
        self.moved = moved
        self.patience_s = 0.0
        self.due_s = 0.0

    @property
    def counts(self) -> bool:
        """Whether a client still waits for this attempt, not for another one or none."""
        return self.request.live and self.request.attempt is self

    @property
    def incoming(self) -> bool:
        """Whether it is to take over from the attempt that counts."""
        migration = self.request.migration
        return migration is not None and migration.target is self and self.request.live

    @property
    def sides(self) -> tuple[Side, ...]:
        return (self.decode,) if self.prefill is None else (self.prefill, self.decode)

    @property
    def prefill_closed(self) -> bool:
        return self.prefill is None or self.prefill.closed

    @property
    def lacks_first_token(self) -> bool:
        """Whether prefill still has to send the first token of the answer."""
        return self.prefill is not None and not self.base and not self.request.tokens.delivered

    @property
    def awaited(self) -> bool:
        """Whether it cannot go on before prefill, or decode with its state, says something."""
        if self.moved:
            return self.counts and not self.state_arrived
        return (
            self.prefill is not None
            and self.counts
            and (
                not self.state_arrived or self.lacks_first_token or self.request.ending is not None
            )
        )

    def side_of(self, worker_id: str) -> Side | None:
        """The open side that a worker has in this attempt."""
        decode, prefill = self.decode, self.prefill
        if prefill is not None and prefill.worker_id == worker_id and not prefill.closed:
            return prefill
        return decode if decode.worker_id == worker_id and not decode.closed else None


@dataclass(slots=True, eq=False)
class Migration:
    """A request on its way from the attempt that runs to another one, with its state.

    What the target says before the source has said all it has to say waits here.
    """

    source: Attempt
    target: Attempt
    state_bytes: int
    known_tokens: int | None = None  # of the answer, at the target; None: its state is not there
    early: list[Chunk] = field(default_factory=list)
    ended: Ended | None = None  # of the target


@dataclass(slots=True, init=False, eq=False)
class Request:
    """One request from arrival to end."""

    request_id: str
    prompt_tokens: int
    max_tokens: int
    class_rank: int
    arrived_s: float
    deadline_s: float | None
    tenant: str
    prefix: PrefixKeys | None
    ttft_s: float  # target of its class
    state: State
    attempt: Attempt | None
    migration: Migration | None
    live: bool  # the client still waits for it
    # Decode ended well, but prefill has not yet said all it has to say.
    ending: tuple[Reason, str] | None
    transitions: list[Transition]
    decisions: list[Decision]
    start_by_s: float  # when prefill should begin
    waits_before: tuple[float, ...]  # of the queue's first, when this one was queued
    retries: int  # attempts that failed
    refusals: int  # attempts that a worker did not take, in a row
    migrations: int  # how often it has moved
    failed_migrations: int  # in a row
    migrate_after_s: float  # not before
    avoid: frozenset[str]  # workers that failed it
    version: str | None  # of the model that has made its tokens
    # What is cached of it where, as of so many changes of the index.
    hits: Hits
    hits_as_of: int
    placed_s: float | None
    reserved_s: float | None
    first_token_s: float | None
    last_token_s: float | None
    prefill_ms: float
    handoff: HandoffReport | None
    cached_tokens: int
    speculation: SpeculationReport | None
    prefill_worker: str
    decode_worker: str
    tokens: TokenOrder

    def __init__(
        self,
        request_id: str,
        prompt_tokens: int,
        max_tokens: int,
        class_rank: int,
        arrived_s: float,
        deadline_s: float | None = None,
        tenant: str = "",
        prefix: PrefixKeys | None = None,
        ttft_s: float = 0.0,
    ) -> None:
        self.request_id = request_id
        self.prompt_tokens = prompt_tokens
        self.max_tokens = max_tokens
        self.class_rank = class_rank
        self.arrived_s = arrived_s
        self.deadline_s = deadline_s
        self.tenant = tenant
        self.prefix = prefix
        self.ttft_s = ttft_s
        self.state = State.QUEUED
        self.attempt = None
        self.migration = None
        self.live = True
        self.ending = None
        self.transitions = []
        self.decisions = []
        self.start_by_s = 0.0
        self.waits_before = ()
        self.retries = 0
        self.refusals = 0
        self.migrations = 0
        self.failed_migrations = 0
        self.migrate_after_s = 0.0
        self.avoid = _NOBODY
        self.version = None
        self.hits = NO_HITS
        self.hits_as_of = -1
        self.placed_s = None
        self.reserved_s = None
        self.first_token_s = None
        self.last_token_s = None
        self.prefill_ms = 0.0
        self.handoff = None
        self.cached_tokens = 0
        self.speculation = None
        self.prefill_worker = ""
        self.decode_worker = ""
        self.tokens = TokenOrder(max_tokens)

    @property
    def cost(self) -> float:
        """Its size among others: tokens that it may come to have."""
        return float(self.prompt_tokens + self.max_tokens)

    @property
    def read_tokens(self) -> int:
        """What must be read before the next token can be made."""
        return self.prompt_tokens + self.tokens.delivered

    def move(
        self,
        now_s: float,
        state: State,
        cause: Cause,
        reason: Reason = common_pb2.REASON_UNSPECIFIED,
        detail: str = "",
    ) -> None:
        """Enter a state and record why."""
        self.state = state
        self.transitions.append(Transition(now_s, state, cause, reason, detail))
        if len(self.transitions) > _KEPT_TRANSITIONS:
            del self.transitions[1]  # how it began, and how it goes on

    def decide(self, decision: Decision) -> None:
        """Remember where an attempt goes."""
        self.decisions.append(decision)
        if len(self.decisions) > _KEPT_DECISIONS:
            del self.decisions[1]

    def report(self, now_s: float) -> Report:
        """Where the time went, as of now."""
        first_s = self.first_token_s
        last_s = self.last_token_s
        completion_tokens = self.tokens.delivered
        gaps = completion_tokens - 1
        return Report(
            arrived_s=self.arrived_s,
            placed_s=self.placed_s,
            reserved_s=self.reserved_s,
            ended_s=now_s,
            queue_ms=_ms(self.arrived_s, self.placed_s if self.placed_s is not None else now_s),
            ttft_ms=_ms(self.arrived_s, first_s) if first_s is not None else 0.0,
            mean_itl_ms=(
                _ms(first_s, last_s) / gaps
                if first_s is not None and last_s is not None and gaps > 0
                else 0.0
            ),
            total_ms=_ms(self.arrived_s, now_s),
            prefill_worker=self.prefill_worker,
            decode_worker=self.decode_worker,
            prefill_ms=self.prefill_ms,
            handoff=self.handoff,
            cached_tokens=self.cached_tokens,
            speculation=self.speculation,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=completion_tokens,
            retries=self.retries,
            migrations=self.migrations,
        )


def _ms(from_s: float, to_s: float) -> float:
    return (to_s - from_s) * 1000.0
