"""When requests come: arrival processes as endless streams of seconds.

Pure: the same seed gives the same moments. Rates that change over time are made by thinning
(Lewis and Shedler, 1979): a Poisson process at the highest rate, of which each arrival stays with
the probability that the rate of its moment has of the highest.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator

Rate = Callable[[float], float]  # requests per second at a moment


def constant(rate_rps: float) -> Iterator[float]:
    """Equal gaps, beginning with one."""
    return (count / rate_rps for count in itertools.count(1))


def poisson(rate_rps: float, seed: int) -> Iterator[float]:
    """Exponential gaps: whoever comes does not know of the others."""
    rng, now_s = random.Random(seed), 0.0
    while True:
        now_s += rng.expovariate(rate_rps)
        yield now_s


def gamma(rate_rps: float, burstiness: float, seed: int) -> Iterator[float]:
    """Gaps of a gamma distribution whose shape is `burstiness`: 1 is Poisson, less comes in
    bursts, more is steadier. The coefficient of variation of gaps is burstiness ** -0.5."""
    rng, now_s = random.Random(seed), 0.0
    scale = 1.0 / (rate_rps * burstiness)
    while True:
        now_s += rng.gammavariate(burstiness, scale)
        yield now_s


def varying(rate: Rate, highest_rps: float, seed: int) -> Iterator[float]:
    """A Poisson process whose rate changes; `rate` never exceeds `highest_rps`."""
    rng = random.Random(f"{seed}/thinning")
    return (at_s for at_s in poisson(highest_rps, seed) if rng.random() * highest_rps < rate(at_s))


def ramp(from_rps: float, to_rps: float, over_s: float) -> Rate:
    """From one rate to another in a straight line, and on at the second."""

    def rate(at_s: float) -> float:
        return from_rps + (to_rps - from_rps) * min(1.0, at_s / over_s)

    return rate


def step(before_rps: float, after_rps: float, at_s: float) -> Rate:
    """One rate until a moment, another from then on."""
    return lambda now_s: before_rps if now_s < at_s else after_rps


def diurnal(mean_rps: float, swing: float, period_s: float) -> Rate:
    """A sine that begins at its lowest, as nights do: mean * (1 - swing .. 1 + swing)."""

    def rate(at_s: float) -> float:
        return mean_rps * (1.0 - swing * math.cos(2.0 * math.pi * at_s / period_s))

    return rate
