"""How long a decode step takes with n requests, learnt from the steps that workers report.

    step_ms = base + slope * n

Fitted by least squares with forgetting. It says how many requests a worker can decode at an ITL
target; while it has seen only one batch size, or only noise, it limits nothing.
"""

from __future__ import annotations

_KEPT = 0.98  # of the weight of earlier steps, with each new one
_LEAST_WEIGHT = 8.0  # steps
_LEAST_VARIANCE = 0.25  # of the batch size


class StepModel:
    """One worker's decode steps."""

    __slots__ = ("_base", "_n", "_nn", "_nt", "_slope", "_t", "_tokens", "_weight")

    def __init__(self) -> None:
        self._weight = self._n = self._nn = self._t = self._nt = 0.0
        self._tokens = 1.0
        self._base = self._slope = 0.0

    def observe(self, requests: int, step_ms: float, step_tokens: float) -> None:
        """Take in one step; `step_tokens` is how many each request got on average."""
        if requests < 1 or step_ms <= 0.0:
            return
        self._weight = self._weight * _KEPT + 1.0
        self._n = self._n * _KEPT + requests
        self._nn = self._nn * _KEPT + requests * requests
        self._t = self._t * _KEPT + step_ms
        self._nt = self._nt * _KEPT + requests * step_ms
        self._tokens += (max(step_tokens, 1.0) - self._tokens) * (1.0 - _KEPT)
        self._base, self._slope = self._line()

    def _line(self) -> tuple[float, float]:
        """(base, slope); a flat line until batch sizes have differed."""
        mean_n, mean_t = self._n / self._weight, self._t / self._weight
        variance = self._nn / self._weight - mean_n * mean_n
        if self._weight < _LEAST_WEIGHT or variance < _LEAST_VARIANCE:
            return mean_t, 0.0
        slope = max((self._nt / self._weight - mean_n * mean_t) / variance, 0.0)
        return mean_t - slope * mean_n, slope

    def step_s(self, requests: int) -> float:
        """How long a step with so many requests takes; 0 while nothing is known."""
        step_ms = self._base + self._slope * requests
        return step_ms / 1000.0 if step_ms > 0.0 else 0.0

    @property
    def limits(self) -> bool:
        """Whether larger batches were seen to take longer."""
        return self._slope > 0.0

    def most_requests(self, itl_s: float) -> int | None:
        """How many can decode with that ITL; None: nothing is known to stand against any number.

        A target that not even a single request meets limits nothing: keeping others away would
        cost throughput and win nothing.
        """
        base, slope = self._base, self._slope
        budget_ms = itl_s * 1000.0 * self._tokens
        if slope <= 0.0 or base + slope > budget_ms:
            return None
        return max(1, int((budget_ms - base) / slope))
