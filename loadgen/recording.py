"""What happened to each request, and to all of them so far.

Times are seconds since the run began, by the clock that the run was given. Latencies count from
the moment at which a request was meant to be sent: a client that is held up, by itself or by the
endpoint, must not hide that its users waited (coordinated omission).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

INTERRUPTED = "interrupted"
Clock = Callable[[], float]


@dataclass(slots=True)
class Speculation:
    """Decode steps of requests, and how far their drafts were accepted.

    `drafted[i]` counts steps whose drafts before i were all accepted and that had a draft i,
    `accepted[i]` those in which it was accepted as well. `lengths[n]` counts steps that gave n
    tokens; where an endpoint tells steps apart only by what it streams, a step is a chunk.
    """

    steps: int = 0
    drafted: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    lengths: Counter[int] = field(default_factory=Counter)

    def add_report(self, steps: int, drafted: Sequence[int], accepted: Sequence[int]) -> None:
        """What an engine says that it did."""
        self.steps += steps
        for mine, theirs in ((self.drafted, drafted), (self.accepted, accepted)):
            mine.extend([0] * (len(theirs) - len(mine)))
            for place, count in enumerate(theirs):
                mine[place] += count
        # Of `steps`, accepted[i] gave more than i + 1 tokens.
        reached = [steps, *accepted]
        for place, count in enumerate(reached):
            following = reached[place + 1] if place + 1 < len(reached) else 0
            if count > following:
                self.lengths[place + 1] += count - following

    def add_chunk(self, tokens: int) -> None:
        """A streamed chunk."""
        self.steps += 1
        self.lengths[tokens] += 1

    def add(self, other: Speculation) -> None:
        self.steps += other.steps
        for mine, theirs in ((self.drafted, other.drafted), (self.accepted, other.accepted)):
            mine.extend([0] * (len(theirs) - len(mine)))
            for place, count in enumerate(theirs):
                mine[place] += count
        self.lengths.update(other.lengths)


@dataclass(slots=True)
class Record:
    """One request. `reason` is empty while it runs and after a good end; NaN: has not happened.
    `made_tokens` are the tokens that its prompt was made of, 0 when nobody here counted them;
    `counted_tokens` is what the endpoint says of it."""

    session: int
    turn: int
    class_name: str
    intended_s: float
    made_tokens: int
    wanted_tokens: int
    clock: Clock
    gaps: Gaps
    sent_s: float = math.nan
    first_s: float = math.nan
    last_s: float = math.nan
    ended_s: float = math.nan
    tokens: int = 0
    chunks: int = 0
    cached_tokens: int | None = None
    counted_tokens: int | None = None
    reason: str = ""
    detail: str = ""
    finish: str = ""
    answer_ids: list[int] = field(default_factory=list)
    answer_text: list[str] = field(default_factory=list)
    speculation: Speculation | None = None
    measured: str = ""  # how `speculation` was found

    def send(self) -> None:
        """The request goes out."""
        self.sent_s = self.clock()

    def chunk(self, tokens: int) -> None:
        """Something of the answer has come."""
        now_s = self.clock()
        if self.chunks:
            self.gaps.add(now_s - self.last_s)
        else:
            self.first_s = now_s
        self.last_s = now_s
        self.chunks += 1
        self.tokens += tokens

    def end(self, reason: str = "", detail: str = "") -> None:
        """No more comes; a reason if that is not as it should be."""
        self.ended_s = self.clock()
        self.reason, self.detail = reason, detail

    def forget_answer(self) -> None:
        """What was said is no longer needed; there may be a million of these."""
        self.answer_ids, self.answer_text = [], []

    @property
    def ended(self) -> bool:
        return not math.isnan(self.ended_s)

    @property
    def good(self) -> bool:
        """Ended as it should."""
        return self.ended and not self.reason

    @property
    def prompt_tokens(self) -> int:
        """As the endpoint counts them, where it tells."""
        return self.made_tokens if self.counted_tokens is None else self.counted_tokens

    @property
    def ttft_ms(self) -> float:
        return (self.first_s - self.intended_s) * 1e3

    @property
    def itl_ms(self) -> float:
        """Mean time between tokens; NaN without a gap."""
        if self.tokens < 2:
            return math.nan
        return (self.last_s - self.first_s) / (self.tokens - 1) * 1e3

    @property
    def e2e_ms(self) -> float:
        return (self.last_s - self.intended_s) * 1e3

    @property
    def late_ms(self) -> float:
        """How much later than intended it was sent."""
        return (self.sent_s - self.intended_s) * 1e3


class Gaps:
    """Times between chunks of an answer, of all requests, to 2 %: there are too many to keep."""

    _STEP = math.log(1.02)

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def add(self, gap_s: float) -> None:
        self._counts[round(math.log(max(gap_s, 1e-6)) / self._STEP)] += 1

    def percentiles_ms(self, shares: Sequence[int]) -> dict[str, float] | None:
        """p50 and so on; None when there is no gap."""
        total = sum(self._counts.values())
        if not total:
            return None
        wanted, seen = list(shares), 0
        out: dict[str, float] = {}
        for bucket in sorted(self._counts):
            seen += self._counts[bucket]
            while wanted and seen >= total * wanted[0] / 100.0:
                out[f"p{wanted.pop(0)}"] = math.exp(bucket * self._STEP) * 1e3
        return out


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands."""

    at_s: float
    open: int
    sent: int
    finished: int
    failed: int
    tokens: int


class Recorder:
    """Owns the records of a run."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.records: list[Record] = []
        self.gaps = Gaps()
        self.most_open = 0
        self._finished = self._failed = 0
        self._ended_tokens = 0
        self._running: dict[int, Record] = {}

    def new(
        self,
        session: int,
        turn: int,
        class_name: str,
        intended_s: float,
        made_tokens: int,
        wanted_tokens: int,
    ) -> Record:
        """A request that is about to be sent."""
        record = Record(
            session,
            turn,
            class_name,
            intended_s,
            made_tokens,
            wanted_tokens,
            self.clock,
            self.gaps,
        )
        self._running[id(record)] = record
        self.records.append(record)
        self.most_open = max(self.most_open, len(self._running))
        return record

    def ended(self, record: Record) -> None:
        """A request has ended, well or not."""
        del self._running[id(record)]
        self._ended_tokens += record.tokens
        if record.good:
            self._finished += 1
        elif record.reason != INTERRUPTED:
            self._failed += 1

    def progress(self) -> Progress:
        tokens = self._ended_tokens + sum(record.tokens for record in self._running.values())
        return Progress(
            self.clock(),
            len(self._running),
            len(self.records),
            self._finished,
            self._failed,
            tokens,
        )
