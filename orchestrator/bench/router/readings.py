"""What the bench reads while it runs: processes from the kernel, distributions from /metrics."""

from __future__ import annotations

import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass

import psutil

_HTTP_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class ProcessReading:
    """Since the process began, and now."""

    cpu_s: float
    rss_bytes: int


def read_process(pid: int) -> ProcessReading:
    """Processor time and resident memory of a process."""
    process = psutil.Process(pid)
    times = process.cpu_times()
    return ProcessReading(times.user + times.system, process.memory_info().rss)


def machine_busy_s() -> float:
    """Processor time that was used by anybody, since the machine began."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0))


Buckets = Mapping[float, float]  # cumulative counts by upper bound in seconds


def scrape(http: str) -> dict[str, Buckets]:
    """The histograms of a router by name. Raises OSError when it does not answer."""
    with urllib.request.urlopen(f"http://{http}/metrics", timeout=_HTTP_TIMEOUT_S) as answer:
        text = answer.read().decode()
    histograms: dict[str, dict[float, float]] = {}
    for line in text.splitlines():
        name, mark, rest = line.partition('_bucket{le="')
        if mark:
            bound, _, count = rest.partition('"} ')
            histograms.setdefault(name, {})[float(bound)] = float(count)
    return dict(histograms)


def quantile_ms(before: Buckets, after: Buckets, share: float) -> float | None:
    """A quantile of what came between two readings, in ms; None when nothing came.

    Between the bounds of a bucket values are taken to be spread evenly.
    """
    counts = {bound: count - before.get(bound, 0.0) for bound, count in after.items()}
    total = counts[float("inf")] if counts else 0.0
    if not total:
        return None
    lower, below = 0.0, 0.0
    for bound, count in sorted(counts.items()):
        if count >= share * total:
            if bound == float("inf"):
                return lower * 1e3
            inside = (share * total - below) / (count - below) if count > below else 1.0
            return (lower + (bound - lower) * inside) * 1e3
        lower, below = bound, count
    return lower * 1e3
