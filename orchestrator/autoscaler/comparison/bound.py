"""What no policy can pass that does not know when the rate will jump, whatever it does afterwards.

Until a cold start after a jump is over there is what was there before: `ready` requests a second.

    missed = jumps x ((high - ready) x min(cold start, time at high) - ready x TTFT)
    GPU-hours = (ready x all of the time + (high - ready) x time at high) x GPU-hours per request

if workers are started at all: not for a jump that is over before they would serve. Optimistic on
purpose: fractions of workers, the jump known the moment it happens, nothing lost to noise. Each
request is of mean size. Solved for `ready` it says what an amount of GPU-hours attains at best, and
what an attainment costs at least. A policy that learns when jumps come back can pass it.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.autoscaler.comparison.traffic import Jumps
from orchestrator.autoscaler.ground import Ground
from orchestrator.autoscaler.lengths import Lengths

_STEPS = 2000


@dataclass(frozen=True, slots=True)
class Bound:
    """The two sides of the trade for one kind of traffic and one cold start."""

    jumps: Jumps
    requests: int
    gpu_s_per_request: float
    cold_start_s: float
    ttft_s: float

    def attainment(self, ready_rps: float) -> float:
        """At best, with so many requests a second that the workers before a jump can take."""
        jumps = self.jumps
        late_s = min(self.cold_start_s, jumps.each_s)
        late = (jumps.high_rps - ready_rps) * late_s - ready_rps * self.ttft_s
        return 1.0 - len(jumps.at_s) * max(late, 0.0) / self.requests

    def gpu_hours(self, ready_rps: float) -> float:
        """At least."""
        jumps = self.jumps
        served = ready_rps * jumps.seconds
        if self.cold_start_s < jumps.each_s:
            served += (jumps.high_rps - ready_rps) * len(jumps.at_s) * jumps.each_s
        return served * self.gpu_s_per_request / 3600.0

    def best_attainment(self, gpu_hours: float) -> float:
        """At best, for so many GPU-hours."""
        able = [ready for ready in self._settings() if self.gpu_hours(ready) <= gpu_hours]
        return self.attainment(max(able, default=self.jumps.low_rps))

    def least_gpu_hours(self, attainment: float) -> float:
        """At least, for an attainment."""
        able = [ready for ready in self._settings() if self.attainment(ready) >= attainment]
        return self.gpu_hours(min(able, default=self.jumps.high_rps))

    def _settings(self) -> list[float]:
        low, high = self.jumps.low_rps, self.jumps.high_rps
        return [low + (high - low) * step / _STEPS for step in range(_STEPS + 1)]


def bound_of(jumps: Jumps, ground: Ground, requests: int) -> Bound:
    """For workers of mean rate with requests of mean size."""
    mean = Lengths(1.0, jumps.isl_tokens, jumps.osl_tokens).workload(ground.attainment)
    reading, writing = ground.workers(mean)
    gpu_s = ground.kinds["prefill"].gpus / reading.rate + ground.kinds["decode"].gpus / writing.rate
    return Bound(jumps, requests, gpu_s, ground.cold_start_s, ground.ttft_s)
