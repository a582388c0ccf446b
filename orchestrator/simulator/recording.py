"""What a simulation leaves behind: a row for each request, and samples of the cluster over time."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field

from router.core.instructions import Finish
from router.core.matching import MatchReport
from router.core.reasons import WELL, reason_name


@dataclass(slots=True)
class RequestRows:
    """Columns of requests that ended well, in the order in which they ended; times in ms."""

    numbers: array[int] = field(default_factory=lambda: array("l"))
    class_ranks: array[int] = field(default_factory=lambda: array("l"))
    ttft_ms: array[float] = field(default_factory=lambda: array("d"))
    itl_ms: array[float] = field(default_factory=lambda: array("d"))
    total_ms: array[float] = field(default_factory=lambda: array("d"))
    queue_ms: array[float] = field(default_factory=lambda: array("d"))
    tokens: array[int] = field(default_factory=lambda: array("l"))
    local: array[int] = field(default_factory=lambda: array("b"))  # read where it was decoded
    prompt_tokens: int = 0
    cached_tokens: int = 0
    retries: int = 0
    failures: Counter[str] = field(default_factory=Counter)

    def add(self, number: int, class_rank: int, finish: Finish) -> None:
        """A request has ended."""
        report = finish.report
        self.retries += report.retries
        if finish.reason not in WELL:
            self.failures[reason_name(finish.reason)] += 1
            return
        self.numbers.append(number)
        self.class_ranks.append(class_rank)
        self.ttft_ms.append(report.ttft_ms)
        self.itl_ms.append(report.mean_itl_ms)
        self.total_ms.append(report.total_ms)
        self.queue_ms.append(report.queue_ms)
        self.tokens.append(report.completion_tokens)
        self.prompt_tokens += report.prompt_tokens
        self.cached_tokens += report.cached_tokens
        self.local.append(report.handoff is None)


@dataclass(frozen=True, slots=True)
class Sample:
    """The cluster at one moment; shares are of the time since the sample before."""

    at_s: float
    queued: int
    running: int
    finished: int
    prefill_serving: int
    decode_serving: int
    starting: int
    pending: int
    prefill_busy_share: float
    decode_busy_share: float
    matched_ratio: float | None
    gpus: int


def shares(match: MatchReport) -> tuple[float, float, float | None]:
    """(prefill busy, decode busy, matched ratio) of a report."""
    return 1.0 - match.prefill_idle_share, 1.0 - match.decode_idle_share, match.matched_ratio
