"""How much faster workers are than the performance model says: a slowly moving factor per role.

    prefill: measured tokens a second while reading / predicted for the prompts of late
    decode:  predicted time of a step with those requests / measured

Workers that have just begun, or that read or decode next to nothing, say little about what the role
can do (their caches are cold, their kernels are being built); their samples are ignored.
"""

from __future__ import annotations

from statistics import median

from orchestrator.autoscaler.capacity import read_s
from orchestrator.autoscaler.observation import ROLES, Observation
from orchestrator.planner.workload import Workload
from orchestrator.simulator.cluster import WorkerKind
from router.core.events import Role

_LEAST, _MOST = 0.01, 100.0


class Correction:
    """Owns the factors."""

    def __init__(self, warm_s: float, half_life_s: float) -> None:
        """Samples count once a worker is `warm_s` old; a factor moves half-way in `half_life_s`."""
        self._warm_s = warm_s
        self._half_life_s = half_life_s
        self.factors: dict[Role, float] = dict.fromkeys(ROLES, 1.0)
        self._measured: set[Role] = set()

    def observe(
        self, observed: Observation, workload: Workload, kinds: dict[Role, WorkerKind]
    ) -> None:
        """Move each factor towards the median of its warm workers."""
        move = 1.0 - 0.5 ** (observed.period_s / self._half_life_s)
        seen: dict[Role, list[float]] = {role: [] for role in ROLES}
        predicted_tokens_per_s = 0.0
        for worker in observed.workers:
            if worker.age_s < self._warm_s or worker.leaving:
                continue
            kind = kinds[worker.role]
            if worker.role == "prefill" and worker.prefill_tokens_per_s > 0.0:
                predicted_tokens_per_s = predicted_tokens_per_s or _tokens_per_s(kind, workload)
                seen["prefill"].append(worker.prefill_tokens_per_s / predicted_tokens_per_s)
            elif worker.role == "decode" and worker.step_ms > 0.0 and worker.step_requests > 0:
                context = worker.context_tokens or worker.step_requests * workload.context
                step_s = kind.times.step_s(worker.step_requests, context)
                seen["decode"].append(step_s * 1e3 / worker.step_ms)
        for role, factors in seen.items():
            if factors:
                target = min(max(float(median(factors)), _LEAST), _MOST)
                # The first measurement is worth more than the guess before it.
                share = move if role in self._measured else 1.0
                self._measured.add(role)
                self.factors[role] += share * (target - self.factors[role])


def _tokens_per_s(kind: WorkerKind, workload: Workload) -> float:
    """Tokens that a prefill worker reads in a second of reading, cached ones aside."""
    hit = workload.prefix_hit
    tokens = seconds = 0.0
    for length, weight in zip(workload.isl, workload.weights, strict=True):
        tokens += weight * length * (1.0 - hit)
        seconds += weight * read_s(kind, float(length), float(length) * hit)
    return tokens / max(seconds, 1e-12)
