"""How many prefill and decode workers run at the same rate: the balance over three resources.

With request rates r_p and r_d of one GPU, N_p r_p = N_d r_d, so the ctx:gen ratio is
rho = N_p/N_d = r_d/r_p and the system makes decode throughput / (1 + rho) tokens a second for each
GPU (Beyond the Buzz, arXiv 2506.05508, algorithm 2, whose published lines for GPU counts contradict
each other). The link is inside both rates: a worker that the link holds back has the link's rate.

The autoscaler asks here too, with the rates that it observes: `counts_for_demand`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np

from orchestrator.planner.queueing import percentile_wait_s
from workers.perf.arrays import Floats, Integers
from workers.perf.errors import PerfError

TOLERANCE = 0.03
_BISECTIONS = 30
_MOST_TRIED = 128

Bound = Literal["prefill", "decode", "TTFT"]


@dataclass(frozen=True, slots=True)
class Pool:
    """What one worker of a pool does.

    Attributes:
        rate: requests a second that it finishes at most, the link included.
        ranks: devices it takes.
        slots: requests it works on at once; service_s: for how long each.
        scv: squared coefficient of variation of that time.
        latency_s: time that it adds to TTFT besides waiting.
    """

    rate: float
    ranks: int
    slots: float
    service_s: float
    scv: float = 0.0
    latency_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Match:
    """Counts of workers and what they sustain.

    `sustained_rps` meets the TTFT target; `ttft_s` is at that rate, or at the demand when one was
    given. `bound` is what would have to grow for more.
    """

    prefill: int
    decode: int
    sustained_rps: float
    ttft_s: float
    prefill_utilisation: float
    decode_utilisation: float
    bound: Bound

    @property
    def instances(self) -> int:
        return self.prefill + self.decode


def gpu_ratio(prefill_rate: float, decode_rate: float) -> float:
    """rho = N_p/N_d = r_d/r_p from the request rates of one GPU of each pool."""
    return decode_rate / prefill_rate


def matched_throughput(decode_throughput: float, ratio: float) -> float:
    """Tokens a second for each GPU of both pools: decode throughput / (1 + rho)."""
    return decode_throughput / (1.0 + ratio)


def smallest_fraction(value: float, tolerance: float = TOLERANCE) -> Fraction:
    """The fraction with the smallest denominator whose relative error is within the tolerance.

    Walks the Stern-Brocot tree, on which fractions come in order of denominators (Graham, Knuth and
    Patashnik, Concrete Mathematics, 4.5).

    Raises:
        PerfError: the value is not positive and finite.
    """
    if not (math.isfinite(value) and value > 0.0):
        raise PerfError(f"ratio {value}: must be positive and finite")
    low, high = value * (1.0 - tolerance), value * (1.0 + tolerance)
    whole = math.ceil(low)
    if whole <= high and whole >= 1:
        return Fraction(max(whole, min(round(value), math.floor(high))))
    return _between(Fraction(low), Fraction(high))


def _between(low: Fraction, high: Fraction) -> Fraction:
    """The simplest fraction of a closed interval of positive numbers."""
    whole = math.ceil(low)
    if whole <= high and whole > 0:
        return Fraction(whole)
    base = math.floor(low)
    rest = _between(1 / (high - base), 1 / (low - base))
    return base + 1 / rest


def unit_counts(prefill_rate: float, decode_rate: float) -> tuple[int, int]:
    """The smallest numbers of prefill and decode workers that match, from rates of one worker."""
    fraction = smallest_fraction(decode_rate / prefill_rate)
    return fraction.numerator, fraction.denominator


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Pairs of pools as arrays: the fields of `Pool` for prefill (p) and decode (d)."""

    p_rate: Floats
    p_slots: Floats
    p_service_s: Floats
    p_scv: Floats
    p_latency_s: Floats
    d_rate: Floats
    d_slots: Floats
    d_service_s: Floats
    d_scv: Floats

    @classmethod
    def of(cls, prefill: Pool, decode: Pool) -> Pairs:
        """One pair, as arrays without a dimension."""
        return cls(
            *(
                np.asarray(value)
                for value in (
                    prefill.rate,
                    prefill.slots,
                    prefill.service_s,
                    prefill.scv,
                    prefill.latency_s,
                    decode.rate,
                    decode.slots,
                    decode.service_s,
                    decode.scv,
                )
            )
        )

    def take(self, chosen: Integers) -> Pairs:
        """Those at some indices."""
        return Pairs(*(getattr(self, name)[chosen] for name in self.__slots__))

    def capacity(self, prefill: Floats, decode: Floats) -> Floats:
        """Requests a second without any wait."""
        return np.minimum(prefill * self.p_rate, decode * self.d_rate)

    def ttft_s(
        self, prefill: Floats, decode: Floats, demand: Floats | float, percentile: float
    ) -> Floats:
        """TTFT that a share `percentile` of requests does not exceed.

        A request waits for a decode slot, then for a prefill worker, and is then read (the order of
        `docs/architecture.md`).
        """
        p_wait_s = percentile_wait_s(
            prefill * self.p_slots,
            demand / (prefill * self.p_rate),
            self.p_service_s,
            self.p_scv,
            percentile,
        )
        d_wait_s = percentile_wait_s(
            decode * self.d_slots,
            demand / (decode * self.d_rate),
            self.d_service_s,
            self.d_scv,
            percentile,
        )
        return p_wait_s + d_wait_s + self.p_latency_s

    def sustained(
        self, prefill: Floats, decode: Floats, ttft_s: float, percentile: float
    ) -> Floats:
        """The highest demand at which TTFT stays within its target, by bisection; 0 if none does.

        An infinite target gives the capacity.
        """
        high = self.capacity(prefill, decode)
        if math.isinf(ttft_s):
            return high
        low = np.zeros_like(high)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2.0
            good = self.ttft_s(prefill, decode, middle, percentile) <= ttft_s
            low = np.where(good, middle, low)
            high = np.where(good, high, middle)
        return np.where(self.p_latency_s <= ttft_s, low, 0.0)

    def describe(
        self, prefill: int, decode: int, demand_rps: float, ttft_s: float, percentile: float
    ) -> Match:
        """Counts of one pair at a demand, in words."""
        n_p, n_d = np.asarray(float(prefill)), np.asarray(float(decode))
        sustained = float(self.sustained(n_p, n_d, ttft_s, percentile))
        capacity = float(self.capacity(n_p, n_d))
        p_used = demand_rps / float(n_p * self.p_rate)
        d_used = demand_rps / float(n_d * self.d_rate)
        bound: Bound = "prefill" if p_used > d_used else "decode"
        return Match(
            prefill=prefill,
            decode=decode,
            sustained_rps=sustained,
            ttft_s=float(self.ttft_s(n_p, n_d, min(demand_rps, capacity), percentile)),
            prefill_utilisation=p_used,
            decode_utilisation=d_used,
            bound="TTFT" if sustained < 0.9 * capacity else bound,
        )


def counts_for_demand(
    demand_rps: float,
    prefill: Pool,
    decode: Pool,
    *,
    ttft_s: float = math.inf,
    percentile: float = 0.95,
    most_workers: int = 4096,
) -> Match | None:
    """The fewest devices that serve a demand within the TTFT target.

    The first counts are those that the balance asks for; more prefill shortens the wait for it,
    more decode the wait for a slot. None: no counts up to `most_workers` of a kind do.
    """
    if demand_rps <= 0.0:
        raise PerfError(f"demand {demand_rps:g}: must be positive")
    pairs = Pairs.of(prefill, decode)
    first_p = _at_least(demand_rps, prefill.rate)
    first_d = _at_least(demand_rps, decode.rate)
    best: tuple[int, int, int] | None = None
    for extra in range(4):
        n_d = first_d + extra
        n_p = _fewest_prefill(pairs, demand_rps, first_p, n_d, ttft_s, percentile, most_workers)
        if n_p is None or n_d > most_workers:
            continue
        ranks = n_p * prefill.ranks + n_d * decode.ranks
        if best is None or ranks < best[0]:
            best = ranks, n_p, n_d
    return None if best is None else pairs.describe(*best[1:], demand_rps, ttft_s, percentile)


def counts_for_devices(
    devices: int,
    prefill: Pool,
    decode: Pool,
    *,
    ttft_s: float = math.inf,
    percentile: float = 0.95,
) -> Match | None:
    """The counts that sustain the most within a number of devices; None when none fit."""
    pairs = Pairs.of(prefill, decode)
    n_p, n_d = splits(devices, prefill.ranks, decode.ranks, prefill.rate, decode.rate)
    if not len(n_d):
        return None
    sustained = pairs.sustained(n_p, n_d, ttft_s, percentile)
    index = int(np.argmax(sustained))
    if sustained[index] <= 0.0:
        return None
    rate = float(sustained[index])
    return pairs.describe(int(n_p[index]), int(n_d[index]), rate, ttft_s, percentile)


def splits(
    devices: int, p_ranks: int, d_ranks: int, p_rate: float, d_rate: float
) -> tuple[Floats, Floats]:
    """Counts to try: every one when devices are few, else multiples of the smallest matching unit
    and the counts next to the balance."""
    most = (devices - p_ranks) // d_ranks
    if most < 1:
        return np.zeros(0), np.zeros(0)
    if most <= _MOST_TRIED:
        n_d = np.arange(1.0, most + 1.0)
    else:
        unit_p, unit_d = unit_counts(p_rate, d_rate)
        times = devices // (unit_p * p_ranks + unit_d * d_ranks)
        balance = devices / (d_ranks + p_ranks * d_rate / p_rate)
        around = np.floor(balance * np.linspace(0.8, 1.02, _MOST_TRIED - 1))
        n_d = np.unique(np.clip(np.append(around, times * unit_d), 1.0, most))
    n_p = np.floor((devices - n_d * d_ranks) / p_ranks)
    return n_p, n_d


def _at_least(demand_rps: float, rate: float) -> int:
    """Workers whose utilisation stays below 1."""
    return math.floor(demand_rps / rate) + 1


def _fewest_prefill(
    pairs: Pairs,
    demand_rps: float,
    first: int,
    decode: int,
    ttft_s: float,
    percentile: float,
    most: int,
) -> int | None:
    """The fewest prefill workers within the TTFT target: doubling, then halving the step."""

    def good(count: int) -> bool:
        waits = pairs.ttft_s(np.asarray(count), np.asarray(decode), demand_rps, percentile)
        return bool(waits <= ttft_s)

    low, high = first - 1, first
    while not good(high):
        low, high = high, 2 * high
        if low >= most:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if good(middle) else (middle, high)
    return high
