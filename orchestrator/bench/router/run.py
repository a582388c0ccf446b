"""The phases of the router bench, and what each of them found."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from orchestrator.bench.router.messages import Hold, Load, Sample
from orchestrator.bench.router.readings import machine_busy_s, quantile_ms, scrape
from orchestrator.bench.router.rig import Rig, running_rig
from orchestrator.bench.router.settings import RouterBenchSettings
from workers.engine.simulated.times import LinearTimes

Report = Callable[[str], None]

_QUANTILES = (0.5, 0.95, 0.99)
# Of memory_requests: so many come before the first reading, while caches and pools fill.
_WARM_SHARE = 0.25
# A step that is longer than the bench, so that requests stay open.
_NEVER_MS = 3_600_000.0
_SHORT_TOKENS = 4
_READINGS = 8
_HISTOGRAMS = {
    "request_ms": "tandem_router_request_seconds",
    "token_ms": "tandem_router_token_seconds",
    "loop_delay_ms": "tandem_loop_delay_seconds",
    "hold_ms": "tandem_token_hold_seconds",
}


@dataclass(frozen=True, slots=True)
class Phase:
    """One load and what it cost. Times in ms are p50, p95 and p99; None where nothing came."""

    sample: Sample
    router_cpu_s: float
    worker_cpu_s: float
    others_cores: float  # of the machine, used by processes that are not the bench's
    times_ms: dict[str, list[float | None]]
    longest_hold_ms: float  # to the bound of a bucket, of which 25 ms is one; 0: none was held
    offered_rps: float | None = None  # None in a closed loop

    @property
    def requests_per_s(self) -> float:
        return self.sample.finished / self.sample.window_s

    @property
    def tokens_per_s(self) -> float:
        return self.sample.tokens / self.sample.window_s

    @property
    def router_cores(self) -> float:
        return self.router_cpu_s / self.sample.window_s

    @property
    def worker_cores(self) -> float:
        return self.worker_cpu_s / self.sample.window_s

    @property
    def tokens_per_core_s(self) -> float:
        """Tokens for each second of the routers' processor time."""
        return self.sample.tokens / self.router_cpu_s

    @property
    def requests_per_core_s(self) -> float:
        """Requests for each second of the routers' processor time."""
        return self.sample.finished / self.router_cpu_s

    @property
    def cpu_ms_per_request(self) -> float:
        return 1e3 * self.router_cpu_s / max(1, self.sample.finished)

    @property
    def added_ms(self) -> list[float | None]:
        """The router's own time for a first token: taking the request, sending the token, and the
        loop's delay before each. Sums of quantiles, so from p95 on an upper bound."""
        added: list[float | None] = []
        for taking, sending, delay in zip(
            self.times_ms["request_ms"],
            self.times_ms["token_ms"],
            self.times_ms["loop_delay_ms"],
            strict=True,
        ):
            if taking is None or sending is None:
                added.append(None)
            else:
                added.append(taking + sending + 2 * (delay or 0.0))
        return added


@dataclass(frozen=True, slots=True)
class Memory:
    """Of all routers together."""

    idle_bytes: int
    open_bytes: int
    open_requests: int
    growth_bytes_per_request: float  # the slope through several readings
    requests: int  # of all of that phase
    requests_between: int  # the first and the last of those readings

    @property
    def per_10k_open_bytes(self) -> float:
        return (self.open_bytes - self.idle_bytes) / self.open_requests * 1e4

    @property
    def growth_per_million_bytes(self) -> float:
        """What a million requests add, or would."""
        return self.growth_bytes_per_request * 1e6


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything that was measured."""

    low: Phase
    saturation: Phase
    long_answers: Phase
    loaded: Phase
    latency: Phase
    memory: Memory
    own_cores: bool  # the routers had cores of their own


def run_router_bench(settings: RouterBenchSettings, report: Report) -> Findings:
    """Run every phase. Raises UserError for a process that does not start or ends."""
    times = LinearTimes(
        step_ms=settings.step_ms,
        prompt_token_us=0.0,
        row_us=0.0,
        transfer_ms=0.1,
        bytes_per_s=1e12,
    )
    load = Load(
        prompt_tokens=settings.prompt_tokens,
        output_tokens=settings.output_tokens,
        measure_s=settings.measure_s,
    )
    with running_rig(settings, times) as rig:
        report(f"{settings.low_rps:g} requests/s")
        low = _phase(rig, load.model_copy(update={"requests_per_s": settings.low_rps}))
        report(f"saturation: {settings.concurrency} requests at once")
        full = load.model_copy(update={"concurrency": settings.concurrency})
        saturation = _phase(rig, full)
        report("saturation with answers four times as long")
        long_answers = _phase(
            rig, full.model_copy(update={"output_tokens": 4 * settings.output_tokens})
        )
        loaded_rps = settings.saturating_share * saturation.requests_per_s
        report(f"80 % of saturation: {loaded_rps:.0f} requests/s")
        loaded = _phase(rig, load.model_copy(update={"requests_per_s": loaded_rps}))
        latency = loaded
        if loaded_rps > settings.rate_rps:
            report(f"{settings.rate_rps:g} requests/s")
            latency = _phase(rig, load.model_copy(update={"requests_per_s": settings.rate_rps}))
        report(f"memory over {settings.memory_requests} requests")
        slope, between = _memory_slope(rig, settings, report)
        own_cores = rig.own_cores
    report(f"memory of {settings.open_requests} open requests")
    with running_rig(settings, replace(times, step_ms=_NEVER_MS)) as rig:
        idle, held = _memory_open(rig, settings)
    memory = Memory(idle, held, settings.open_requests, slope, settings.memory_requests, between)
    return Findings(low, saturation, long_answers, loaded, latency, memory, own_cores)


def _phase(rig: Rig, load: Load) -> Phase:
    rig.client.ask(load)
    rig.client.window()
    before, cpu_s = scrape(rig.http), rig.router_reading().cpu_s
    worker_s = rig.worker_cpu_s()
    busy_s, own_s, began_s = machine_busy_s(), rig.own_cpu_s(), time.monotonic()
    sample = rig.client.sample()
    used_s, worker_s = rig.router_reading().cpu_s - cpu_s, rig.worker_cpu_s() - worker_s
    elapsed_s = time.monotonic() - began_s
    others_s = machine_busy_s() - busy_s - (rig.own_cpu_s() - own_s)
    after = scrape(rig.http)
    times_ms = {
        name: [
            quantile_ms(before.get(histogram, {}), after.get(histogram, {}), share)
            for share in _QUANTILES
        ]
        for name, histogram in _HISTOGRAMS.items()
    }
    hold = _HISTOGRAMS["hold_ms"]
    longest_ms = quantile_ms(before.get(hold, {}), after.get(hold, {}), 1.0) or 0.0
    others_cores = max(0.0, others_s / elapsed_s)
    return Phase(sample, used_s, worker_s, others_cores, times_ms, longest_ms, load.requests_per_s)


def _memory_slope(rig: Rig, settings: RouterBenchSettings, report: Report) -> tuple[float, int]:
    """Bytes of resident memory that a request adds, by least squares through several readings of a
    steady stream of short requests, and how many of these came between the first and the last.

    The first part is not read: caches and pools fill.
    """
    warm = int(settings.memory_requests * _WARM_SHARE)
    each = (settings.memory_requests - warm) // _READINGS
    readings: list[tuple[float, float]] = []
    done = 0
    for requests in (warm, *[each] * _READINGS):
        rig.client.ask(
            Load(
                prompt_tokens=_SHORT_TOKENS,
                output_tokens=_SHORT_TOKENS,
                concurrency=64,
                requests=requests,
            )
        )
        rig.client.window()
        rig.client.sample()
        done += requests
        readings.append((done, rig.router_reading().rss_bytes))
        report(f"memory after {done} of {settings.memory_requests} requests")
    slope, _ = statistics.linear_regression(*zip(*readings, strict=True))
    return slope, done - warm


def _memory_open(rig: Rig, settings: RouterBenchSettings) -> tuple[int, int]:
    """Resident memory before and while requests are open."""
    idle = rig.router_reading().rss_bytes
    rig.client.ask(
        Hold(
            prompt_tokens=settings.prompt_tokens,
            output_tokens=settings.output_tokens,
            open_requests=settings.open_requests,
        )
    )
    rig.client.window()
    held = rig.router_reading().rss_bytes
    rig.client.release()
    return idle, held
