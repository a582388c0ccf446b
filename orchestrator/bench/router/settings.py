"""What the router bench runs, checked before anything starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RouterBenchSettings:
    """Requests, the workers behind them, and how long each phase measures.

    `step_ms` is the time of a simulated decode step, so the ITL; `concurrency` what saturates;
    `rate_rps` the rate at which added latency is judged, or 80 % of saturation if that is less.
    """

    model: Path
    routers: int = 1
    prompt_tokens: int = 64
    output_tokens: int = 64
    step_ms: float = 5.0
    concurrency: int = 512
    rate_rps: float = 500.0
    low_rps: float = 20.0
    measure_s: float = 5.0
    open_requests: int = 10_000
    memory_requests: int = 100_000

    @property
    def saturating_share(self) -> float:
        """Of saturation, the load at which processor time and latency are judged."""
        return 0.8


def quick(settings: RouterBenchSettings) -> RouterBenchSettings:
    """Just enough of each phase to see that it runs."""
    return RouterBenchSettings(
        model=settings.model,
        routers=settings.routers,
        prompt_tokens=settings.prompt_tokens,
        output_tokens=settings.output_tokens,
        step_ms=settings.step_ms,
        concurrency=64,
        rate_rps=100.0,
        low_rps=20.0,
        measure_s=1.0,
        open_requests=200,
        memory_requests=500,
    )
