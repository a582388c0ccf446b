"""Figures from the records of a run: latencies, goodput, throughput, failures, acceptance."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from loadgen.recording import INTERRUPTED, Record, Speculation

PERCENTILES = (50, 90, 99)
# A distribution is kept as so many quantiles, evenly apart.
_QUANTILES = 101
_MOST_ROWS = 200  # of latencies over time


@dataclass(frozen=True, slots=True)
class Targets:
    """What a request has to keep to be good."""

    ttft_ms: float
    itl_ms: float

    def met(self, record: Record) -> bool:
        """Of a request that ended well; an answer of one token has no ITL to miss."""
        return record.ttft_ms <= self.ttft_ms and not record.itl_ms > self.itl_ms


def percentiles(values: Iterable[float]) -> dict[str, float] | None:
    """p50, p90, p99 and the mean, of what is no NaN; None when there is nothing."""
    column = np.asarray([value for value in values if value == value], np.float64)
    if not len(column):
        return None
    found = np.percentile(column, PERCENTILES)
    named = {f"p{share}": float(value) for share, value in zip(PERCENTILES, found, strict=True)}
    return {**named, "mean": float(column.mean())}


def percentile(values: Iterable[float], share: float) -> float | None:
    """One of them, of what is no NaN; None when there is nothing."""
    column = [value for value in values if value == value]
    return float(np.percentile(column, share)) if column else None


def quantiles(values: Iterable[float]) -> list[float]:
    """The distribution as evenly spaced quantiles, the least first; empty when there is nothing."""
    column = np.asarray([value for value in values if value == value], np.float64)
    if not len(column):
        return []
    return [float(value) for value in np.quantile(column, np.linspace(0.0, 1.0, _QUANTILES))]


def over_time(records: Iterable[Record]) -> list[dict[str, object]]:
    """Latencies of requests by when they were meant to be sent: a row for each second, or for
    each of equal parts of a long run; none for a time in which none was meant that ended well."""
    good = [record for record in records if record.good]
    width_s = max(1.0, max((one.intended_s for one in good), default=0.0) / _MOST_ROWS)
    parts: dict[int, list[Record]] = {}
    for record in good:
        parts.setdefault(int(record.intended_s // width_s), []).append(record)
    return [
        {
            "at_s": (place + 0.5) * width_s,
            "ttft_ms": percentiles(one.ttft_ms for one in of_part),
            "itl_ms": percentiles(one.itl_ms for one in of_part),
        }
        for place, of_part in sorted(parts.items())
    ]


def failures(records: Iterable[Record]) -> dict[str, int]:
    """Counts by reason, the most frequent first."""
    counts = Counter(
        record.reason for record in records if record.reason and record.reason != INTERRUPTED
    )
    return dict(counts.most_common())


def first_details(records: Iterable[Record]) -> dict[str, str]:
    """For each reason what was said the first time."""
    details: dict[str, str] = {}
    for record in records:
        if record.reason and record.reason != INTERRUPTED:
            details.setdefault(record.reason, record.detail)
    return details


def total_speculation(records: Iterable[Record]) -> Speculation:
    """All decode steps of all requests."""
    total = Speculation()
    for record in records:
        if record.speculation is not None:
            total.add(record.speculation)
    return total


def acceptance(records: Sequence[Record]) -> dict[str, object] | None:
    """Acceptance length (tokens per decode step) and conditional acceptance, over all steps; None
    when nothing tells."""
    total = total_speculation(records)
    if not total.steps:
        return None
    measured = Counter(record.measured for record in records if record.measured)
    return {
        "length": mean_length(total),
        "conditional": conditional(total),
        "steps": total.steps,
        "measured": measured.most_common(1)[0][0],
    }


def mean_length(speculation: Speculation) -> float:
    """Tokens per step."""
    tokens = sum(length * count for length, count in speculation.lengths.items())
    return tokens / speculation.steps


def conditional(speculation: Speculation) -> list[float]:
    """How often draft 1, 2, ... was accepted of the steps that tried it: those in which all before
    it were. Without an engine's report a step is taken to have tried as many as the longest gave:
    P(length >= k + 1) / P(length >= k)."""
    if speculation.drafted:
        pairs = zip(speculation.accepted, speculation.drafted, strict=False)
        return [accepted / drafted for accepted, drafted in pairs if drafted]
    longest = max(speculation.lengths, default=0)
    reached = [
        sum(count for length, count in speculation.lengths.items() if length >= least)
        for least in range(1, longest + 1)
    ]
    return [after / before for before, after in itertools.pairwise(reached)]
