"""How long prompts and answers are of late, from counts that a router has anyway.

Prompts are known when they arrive. Answers are known when they end, which tells too late that they
have become longer: the long ones are still running. So what runs is looked at too. A request met at
random while it runs has made E[L^2]/(2 E[L]) = E[L] (1 + scv)/2 tokens of an answer of length L
(the mean residual life of renewal theory; Cox, Renewal Theory, 1962, 5.1); where those that run
have made many more than the answers that ended let expect, answers have become longer.
"""

from __future__ import annotations

import math

import numpy as np

from orchestrator.autoscaler.observation import Traffic
from orchestrator.planner.workload import Workload
from router.traffic import LENGTH_BINS, bin_tokens

_LEAST_RUNNING = 10
# How clear it must be that answers are longer: the share by which they exceed what is expected, and
# standard errors of a mean of ages, whose coefficient of variation is at most about this.
_TELLING = 0.25
_ERRORS = 3.0
_AGE_CV = 0.8


class Lengths:
    """Discounted sums over requests; `half_life_s` is how quickly old ones are forgotten."""

    def __init__(self, half_life_s: float, isl_tokens: float, osl_tokens: float) -> None:
        """The two lengths are believed while nothing has been seen."""
        self._half_life_s = half_life_s
        self._bins = np.zeros(LENGTH_BINS)
        self._tokens = 0.0
        self._assumed = isl_tokens, osl_tokens
        self._finished = self._answers = self._squares = 0.0
        self._read = self._cached = 0.0
        self._longer = 1.0

    def observe(self, traffic: Traffic, seconds: float) -> None:
        """The requests of a period."""
        keep = 0.5 ** (seconds / self._half_life_s)
        # Kept by requests rather than by time alone: a quiet hour does not erase what is known.
        if traffic.arrived:
            self._bins *= keep
            self._tokens = self._tokens * keep + traffic.prompt_tokens
            for index, count in traffic.prompt_bins.items():
                self._bins[index] += count
        if traffic.finished:
            self._finished = self._finished * keep + traffic.finished
            self._answers = self._answers * keep + traffic.answer_tokens
            self._squares = self._squares * keep + traffic.answer_squares
            self._read = self._read * keep + traffic.ended_prompt_tokens
            self._cached = self._cached * keep + traffic.cached_tokens
        self._longer = 1.0
        if traffic.running >= _LEAST_RUNNING and self._answers:
            made = traffic.running_tokens / traffic.running
            told = made / (self._mean_osl * (1.0 + self._osl_scv) / 2.0)
            doubt = _ERRORS * _AGE_CV / math.sqrt(traffic.running)
            self._longer = told if told > 1.0 + max(_TELLING, doubt) else 1.0

    @property
    def _mean_osl(self) -> float:
        return self._answers / self._finished if self._finished else self._assumed[1]

    @property
    def _osl_scv(self) -> float:
        if self._finished < 2.0:
            return 0.0
        mean = self._answers / self._finished
        return max(self._squares / self._finished / mean**2 - 1.0, 0.0)

    @property
    def osl_tokens(self) -> float:
        """Mean tokens of an answer."""
        return max(self._mean_osl * self._longer, 1.0)

    @property
    def cached_share(self) -> float:
        """Share of the prompts' tokens that prefill workers had cached."""
        return min(self._cached / self._read, 0.95) if self._read else 0.0

    def workload(self, percentile: float) -> Workload:
        """As the planner takes it: prompts as bins, answers by mean and variance."""
        used = np.nonzero(self._bins)[0]
        if len(used):
            isl = np.array([bin_tokens(int(index)) for index in used])
            count = self._bins[used].sum()
            weights = self._bins[used] / count
            # Bins are coarse, the mean is exact.
            isl *= self._tokens / count / float(np.sum(isl * weights))
        else:
            isl, weights = np.array([self._assumed[0]]), np.ones(1)
        osl = self.osl_tokens
        reached = np.searchsorted(np.cumsum(weights), percentile - 1e-9)
        mean = float(np.sum(isl * weights))
        # Answers stay in memory in proportion to their length: E[L^2]/E[L] of what is held.
        longest = osl * (1.0 + self._osl_scv)
        return Workload(
            isl=isl,
            weights=weights,
            isl_percentile=float(isl[min(int(reached), len(isl) - 1)]),
            mean_osl=osl,
            osl_scv=self._osl_scv,
            context=mean + longest / 2.0,
            held=mean + longest,
            prefix_hit=self.cached_share,
            description="observed",
        )
