"""Synthetic traffic with one thing that changes: a step, bursts, a day, or the lengths.

Arrivals are a Poisson process whose rate is a function of time (thinning; Lewis and Shedler, 1979);
lengths are lognormal around their means.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from orchestrator.simulator.trace import TraceRequest

_CV = 0.5  # of prompts and answers


@dataclass(frozen=True, slots=True)
class Jumps:
    """A rate that jumps from low to high at these moments, for `each_s`, within `seconds`."""

    low_rps: float
    high_rps: float
    at_s: tuple[float, ...]
    each_s: float
    seconds: float
    isl_tokens: float = 3000.0
    osl_tokens: float = 300.0


@dataclass(frozen=True, slots=True)
class Shape:
    """Traffic over time: a rate, and the mean lengths of prompts and answers."""

    name: str
    seconds: float
    rate_rps: Callable[[float], float]
    most_rps: float
    isl_tokens: Callable[[float], float] = lambda _: 3000.0
    osl_tokens: Callable[[float], float] = lambda _: 300.0
    jumps: Jumps | None = None


def step(low_rps: float = 2.0, high_rps: float = 14.0, seconds: float = 3600.0) -> Shape:
    """Low, then from one moment to the next high, then low again."""
    begin_s, end_s = seconds / 3.0, seconds / 2.0

    def rate_rps(at_s: float) -> float:
        return high_rps if begin_s <= at_s < end_s else low_rps

    jumps = Jumps(low_rps, high_rps, (begin_s,), end_s - begin_s, seconds)
    return Shape("step", seconds, rate_rps, high_rps, jumps=jumps)


def burst(low_rps: float = 3.0, high_rps: float = 12.0, seconds: float = 3600.0) -> Shape:
    """Bursts of a minute, one every ten minutes."""

    def rate_rps(at_s: float) -> float:
        return high_rps if 300.0 <= at_s % 600.0 < 360.0 else low_rps

    at_s = tuple(300.0 + 600.0 * number for number in range(round(seconds / 600.0)))
    jumps = Jumps(low_rps, high_rps, at_s, 60.0, seconds)
    return Shape("burst", seconds, rate_rps, high_rps, jumps=jumps)


def diurnal(low_rps: float = 0.5, high_rps: float = 14.0, seconds: float = 7200.0) -> Shape:
    """A day in two hours: quiet nights, one peak (an exponential of a cosine)."""
    ratio = math.log(high_rps / low_rps)

    def rate_rps(at_s: float) -> float:
        phase = math.cos(2.0 * math.pi * at_s / seconds)  # 1 at night
        return low_rps * math.exp(ratio * (1.0 - phase) / 2.0)

    return Shape("diurnal", seconds, rate_rps, high_rps)


def lengths(rate_rps: float = 5.0, seconds: float = 3600.0) -> Shape:
    """Equal rate; long prompts with short answers become short prompts with long answers."""
    middle_s, over_s = seconds / 2.0, 300.0

    def share(at_s: float) -> float:
        return min(max((at_s - middle_s) / over_s + 0.5, 0.0), 1.0)

    def isl(at_s: float) -> float:
        return 8000.0 * math.pow(1000.0 / 8000.0, share(at_s))

    def osl(at_s: float) -> float:
        return 150.0 * math.pow(1500.0 / 150.0, share(at_s))

    return Shape("lengths", seconds, lambda _: rate_rps, rate_rps, isl, osl)


def requests_of(shape: Shape, seed: int = 0) -> list[TraceRequest]:
    """The requests of a shape, in order of arrival."""
    rng, at_s = random.Random(seed), 0.0
    out: list[TraceRequest] = []
    while True:
        at_s += rng.expovariate(shape.most_rps)
        if at_s >= shape.seconds:
            return out
        if rng.random() * shape.most_rps < shape.rate_rps(at_s):
            out.append(
                TraceRequest(
                    at_s,
                    _length(rng, shape.isl_tokens(at_s), 32_000),
                    _length(rng, shape.osl_tokens(at_s), 8_000),
                )
            )


def thickened(requests: Sequence[TraceRequest], copies: int, seed: int = 0) -> list[TraceRequest]:
    """Each request so many times, at moments of its own within half a minute: the same traffic at a
    higher rate. Copies share no prefixes with each other."""
    rng, out = random.Random(seed), list[TraceRequest]()
    most = 1 + max((max(one.hash_ids, default=0) for one in requests), default=0)
    for one in requests:
        out.append(one)
        for copy in range(1, copies):
            names = tuple(name + copy * most for name in one.hash_ids)
            at_s = max(one.at_s + rng.uniform(-15.0, 15.0), 0.0)
            out.append(replace(one, at_s=at_s, hash_ids=names))
    out.sort(key=lambda request: request.at_s)
    return out


def _length(rng: random.Random, mean: float, most: int) -> int:
    sigma2 = math.log(1.0 + _CV**2)
    drawn = rng.lognormvariate(math.log(mean) - sigma2 / 2.0, math.sqrt(sigma2))
    return min(max(round(drawn), 1), most)
