"""Everything that `tandem bench simulator` measures, in turn."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orchestrator.bench.simulator.live import Latency, LiveCluster, run_live, run_simulated
from orchestrator.bench.simulator.settings import LIVE_TIMES, Settings
from orchestrator.bench.simulator.speed import (
    Speed,
    bench_cluster,
    bench_traffic,
    core_seconds,
    measure,
)
from orchestrator.simulator.results import percentiles
from orchestrator.simulator.trace import TraceRequest

MILLION = 1_000_000
# Of Azure's answers, so that a live run is over soon.
_ANSWER_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Comparison:
    """The same requests in both worlds; percentiles in ms."""

    requests: int
    live: dict[str, dict[str, float]]
    simulated: dict[str, dict[str, float]]

    def error(self, name: str, percentile: str) -> float:
        """Of the simulation, relative to live, in percent."""
        live = self.live[name][percentile]
        return abs(self.simulated[name][percentile] / live - 1.0) * 100.0


@dataclass(frozen=True, slots=True)
class Findings:
    """Speeds in the order of the sizes; `core_us` is what the router's core alone takes."""

    speeds: tuple[Speed, ...]
    core_us: tuple[float, ...]
    longer: Speed
    million: Speed | None
    comparison: Comparison | None

    @property
    def us_of_one_more(self) -> float:
        """Of a further request at the largest size, start-up taken off."""
        short = self.speeds[-1]
        seconds = self.longer.cpu_s - short.cpu_s
        return seconds / max(self.longer.requests - short.requests, 1) * 1e6

    @property
    def million_s(self) -> float:
        """A million requests at the largest size; measured, or told from two shorter runs."""
        if self.million is not None:
            return self.million.cpu_s
        more = MILLION - self.longer.requests
        return self.longer.cpu_s + more * self.us_of_one_more / 1e6

    @property
    def growth(self) -> float:
        """Cost of a request at the largest size over that at the smallest."""
        return self.us_of_one_more / self.speeds[0].us_per_request


def run_simulator_bench(settings: Settings, report: Callable[[str], None]) -> Findings:
    """Raises UserError when a live process does not start."""
    speeds, core_us = [], []
    for gpus, count in settings.sizes:
        report(f"{count:,} requests on {gpus:,} GPUs")
        speeds.append(measure(gpus, count, settings.rounds))
        report(f"the core alone, on {gpus:,} GPUs")
        cluster = bench_cluster(gpus)
        core_us.append(core_seconds(cluster, bench_traffic(cluster, count)) / count * 1e6)
    largest = settings.sizes[-1][0]
    report(f"{settings.slope:,} requests on {largest:,} GPUs")
    longer = measure(largest, settings.slope, 1)
    million = None
    if settings.full:
        report(f"a million requests on {largest:,} GPUs")
        million = measure(largest, MILLION, 1)
    comparison = None
    if settings.live_requests:
        report(f"{settings.live_requests} requests live, about {_live_s(settings):.0f} s")
        comparison = _compare(settings)
    return Findings(tuple(speeds), tuple(core_us), longer, million, comparison)


def _live_s(settings: Settings) -> float:
    return settings.live_requests / settings.live_rps + 10.0


def _compare(settings: Settings) -> Comparison:
    cluster = LiveCluster(settings.model, LIVE_TIMES)
    trace = live_traffic(settings.live_requests, settings.live_rps)
    simulated = run_simulated(cluster, trace)
    return Comparison(len(trace), _table(run_live(cluster, trace)), _table(simulated))


def live_traffic(count: int, rate_rps: float) -> list[TraceRequest]:
    """Prompts as in the bench of speed, answers a fifth as long, Poisson arrivals."""
    rng = random.Random(1)
    requests = bench_traffic(bench_cluster(10), count, seed=1)
    now_s, out = 0.0, []
    for request in requests:
        now_s += rng.expovariate(rate_rps)
        answer = max(2, math.ceil(request.answer_tokens * _ANSWER_SHARE))
        out.append(TraceRequest(now_s, min(request.prompt_tokens, 4000), answer))
    return out


def _table(rows: Sequence[Latency]) -> dict[str, dict[str, float]]:
    return {
        "ttft_ms": percentiles([row.ttft_ms for row in rows]),
        "itl_ms": percentiles([row.itl_ms for row in rows]),
        "e2e_ms": percentiles([row.total_ms for row in rows]),
    }
