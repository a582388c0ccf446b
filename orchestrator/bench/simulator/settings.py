"""What `tandem bench simulator` runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from workers.engine.simulated.times import LinearTimes

# Slow against what a busy machine adds to a message, so that this is what is compared: 80 ms and a
# quarter of a millisecond for each prompt token in a step, one for each request that decodes.
LIVE_TIMES = LinearTimes(
    step_ms=80.0,
    prompt_token_us=250.0,
    row_us=1000.0,
    context_token_us=0.2,
    transfer_ms=20.0,
    bytes_per_s=1e12,
)


@dataclass(frozen=True, slots=True)
class Settings:
    """Sizes and counts.

    Attributes:
        model: folder whose limits live workers have.
        sizes: (GPUs, requests) of each measurement of speed.
        rounds: runs of each, of which the median counts.
        slope: requests of the longer run at the largest size, from which a million is told.
        full: run the million.
        live_requests: that go through both worlds; 0: none.
        live_rps: of them.
    """

    model: Path
    sizes: tuple[tuple[int, int], ...] = ((10, 10_000), (1_000, 20_000), (10_000, 20_000))
    rounds: int = 3
    slope: int = 60_000
    full: bool = False
    live_requests: int = 150
    live_rps: float = 2.5


def quick(model: Path) -> Settings:
    """Just enough to see that everything runs."""
    return Settings(
        model=model,
        sizes=((10, 300), (1_000, 300), (10_000, 300)),
        rounds=1,
        slope=600,
        live_requests=6,
        live_rps=6.0,
    )
