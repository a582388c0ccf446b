"""What no policy can pass that does not know when the rate will jump, whatever it does afterwards.

Until a cold start after a jump is over there is what was there before: (prefill, decode) workers
that together take `ready` requests a second.

    missed = jumps x ((high - ready) x min(cold start, time at high) - ready x TTFT)
    GPU-hours = workers before x all of the time + workers that high needs besides x time at high

if workers are started at all: not for a jump that is over before they would serve. Optimistic on
purpose: the jump is known the moment it happens, workers are always full, nothing is lost to
noise. Each request is of mean size. Over all counts it says what an amount of GPU-hours attains at
best, and what an attainment costs at least. A policy that learns when jumps come back can pass it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from orchestrator.autoscaler.comparison.traffic import Jumps
from orchestrator.autoscaler.ground import Ground
from orchestrator.autoscaler.lengths import Lengths


@dataclass(frozen=True, slots=True)
class Pool:
    """Workers of one role: requests a second, and GPUs, of each."""

    rate_rps: float
    gpus: int

    def workers(self, rps: float) -> int:
        """As many as a rate takes."""
        return math.ceil(rps / self.rate_rps)


@dataclass(frozen=True, slots=True)
class Bound:
    """The two sides of the trade for one kind of traffic and one cold start."""

    jumps: Jumps
    requests: int
    prefill: Pool
    decode: Pool
    cold_start_s: float
    ttft_s: float

    def attainment(self, prefill: int, decode: int) -> float:
        """At best, with so many workers before a jump."""
        jumps = self.jumps
        ready_rps = min(prefill * self.prefill.rate_rps, decode * self.decode.rate_rps)
        late_s = min(self.cold_start_s, jumps.each_s)
        late = (jumps.high_rps - ready_rps) * late_s - ready_rps * self.ttft_s
        return 1.0 - len(jumps.at_s) * max(late, 0.0) / self.requests

    def gpu_hours(self, prefill: int, decode: int) -> float:
        """At least, with so many workers before a jump."""
        jumps, high_s = self.jumps, 0.0
        if self.cold_start_s < jumps.each_s:
            high_s = len(jumps.at_s) * jumps.each_s
        gpu_s = 0.0
        for pool, count in ((self.prefill, prefill), (self.decode, decode)):
            more = max(pool.workers(jumps.high_rps) - count, 0)
            gpu_s += pool.gpus * (count * jumps.seconds + more * high_s)
        return gpu_s / 3600.0

    def best_attainment(self, gpu_hours: float) -> float:
        """At best, for so many GPU-hours; 0 if they do not even serve the low rate."""
        able = [one for one in self._counts() if self.gpu_hours(*one) <= gpu_hours]
        return max((self.attainment(*one) for one in able), default=0.0)

    def least_gpu_hours(self, attainment: float) -> float:
        """At least, for an attainment."""
        able = [one for one in self._counts() if self.attainment(*one) >= attainment]
        return min(self.gpu_hours(*one) for one in able)

    def _counts(self) -> list[tuple[int, int]]:
        """From what the low rate needs to what the high one does."""
        low_rps, high_rps = self.jumps.low_rps, self.jumps.high_rps
        return [
            (prefill, decode)
            for prefill in range(self.prefill.workers(low_rps), self.prefill.workers(high_rps) + 1)
            for decode in range(self.decode.workers(low_rps), self.decode.workers(high_rps) + 1)
        ]


def bound_of(jumps: Jumps, ground: Ground, requests: int) -> Bound:
    """For workers of mean rate with requests of mean size."""
    mean = Lengths(1.0, jumps.isl_tokens, jumps.osl_tokens).workload(ground.attainment)
    reading, writing = ground.workers(mean)
    prefill = Pool(reading.rate, ground.kinds["prefill"].gpus)
    decode = Pool(writing.rate, ground.kinds["decode"].gpus)
    return Bound(jumps, requests, prefill, decode, ground.cold_start_s, ground.ttft_s)
