"""How many workers of both roles a demand needs, as one decision: the planner's balance with waits.

A request meets its TTFT target if it waits for a decode slot and for a prefill worker no longer
than its own prompt leaves of it. Waits are those of the planner (`planner/queueing.py`: Allen and
Cunneen, Sakasegawa); over the prompts seen

    missed share = sum of w_i (P(wait for prefill > T - read_i) + P(wait for a slot > T - read_i))

and the counts are the fewest GPUs with at most the share that may miss. Prompts that nobody could
read in time are left out: workers do not help them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from orchestrator.autoscaler.capacity import Reading, Writing
from orchestrator.planner.queueing import mean_wait_s, wait_chance

Bound = Literal["prefill", "decode", "TTFT"]
_EXTRA_DECODE = 4
_MOST_WORKERS = 4096


@dataclass(frozen=True, slots=True)
class Need:
    """Counts for a demand, and what they rest on: what `tandem why` shows."""

    prefill: int
    decode: int
    demand_rps: float
    prefill_rps: float
    decode_rps: float
    missed_share: float
    bound: Bound

    def of(self, role: str) -> int:
        return self.prefill if role == "prefill" else self.decode

    def formula(self) -> str:
        """In one line, with the numbers."""
        least_p = self.demand_rps / self.prefill_rps
        least_d = self.demand_rps / self.decode_rps
        return (
            f"{self.demand_rps:.2f} requests/s to be ready for / {self.prefill_rps:.2f} per "
            f"prefill worker = {least_p:.2f}, / {self.decode_rps:.2f} per decode worker = "
            f"{least_d:.2f}; "
            f"so that few enough wait too long for their first token: {self.prefill} prefill + "
            f"{self.decode} decode ({self.missed_share:.2%} miss TTFT, {self.bound} is the limit)"
        )


@dataclass(frozen=True, slots=True)
class Sizing:
    """Workers as they are now, the TTFT target, and the share of requests that may miss it."""

    reading: Reading
    writing: Writing
    prefill_gpus: int
    decode_gpus: int
    ttft_s: float
    may_miss: float
    burstiness: float = 1.0  # squared coefficient of variation of arrivals

    def missed(self, prefill: int, decode: int, demand_rps: float) -> float:
        """Share of the requests that miss the TTFT target; 1 when a pool cannot keep up."""
        one, other = self.reading, self.writing
        slack = self.ttft_s - one.seconds
        able = slack > 0.0
        if not able.any():
            return 0.0
        weights = one.weights[able] / one.weights[able].sum()
        total = 0.0
        for servers, rate, service_s, scv in (
            (float(prefill), prefill * one.rate, one.mean_s, one.scv),
            (max(decode * other.slots, 1.0), decode * other.rate, other.hold_s, other.scv),
        ):
            used = demand_rps / rate
            if used >= 1.0:
                return 1.0
            count, busy = np.asarray(servers), np.asarray(used)
            chance = float(wait_chance(count, busy))
            if chance < 1e-12:
                continue
            mean_s = float(mean_wait_s(count, busy, np.asarray(service_s), scv, self.burstiness))
            late = np.exp(-slack[able] * chance / max(mean_s, 1e-12))
            total += chance * float(np.sum(weights * late))
        return min(total, 1.0)

    def need(self, demand_rps: float, least: tuple[int, int] = (1, 1)) -> Need:
        """The fewest GPUs for a demand; `least` are the smallest allowed counts."""
        first_p = max(math.floor(demand_rps / self.reading.rate) + 1, least[0])
        first_d = max(math.floor(demand_rps / self.writing.rate) + 1, least[1])
        best: tuple[int, int, int] | None = None
        for extra in range(_EXTRA_DECODE):
            decode = first_d + extra
            prefill = self._fewest_prefill(demand_rps, first_p, decode)
            if prefill is None:
                continue
            gpus = prefill * self.prefill_gpus + decode * self.decode_gpus
            if best is None or gpus < best[0]:
                best = gpus, prefill, decode
            if prefill == first_p:
                break
        prefill, decode = best[1:] if best is not None else (first_p, first_d + _EXTRA_DECODE)
        return self._describe(prefill, decode, demand_rps, (first_p, first_d))

    def _fewest_prefill(self, demand_rps: float, first: int, decode: int) -> int | None:
        low, high = first - 1, first
        while self.missed(high, decode, demand_rps) > self.may_miss:
            low, high = high, 2 * high
            if low >= _MOST_WORKERS or self.missed(4 * high, decode, demand_rps) > self.may_miss:
                return None
        while high - low > 1:
            middle = (low + high) // 2
            if self.missed(middle, decode, demand_rps) <= self.may_miss:
                high = middle
            else:
                low = middle
        return high

    def _describe(
        self, prefill: int, decode: int, demand_rps: float, first: tuple[int, int]
    ) -> Need:
        p_used = demand_rps / (prefill * self.reading.rate)
        d_used = demand_rps / (decode * self.writing.rate)
        bound: Bound = "prefill" if p_used > d_used else "decode"
        if (prefill, decode) != first:
            bound = "TTFT"
        return Need(
            prefill,
            decode,
            demand_rps,
            self.reading.rate,
            self.writing.rate,
            self.missed(prefill, decode, demand_rps),
            bound,
        )
