"""What traffic asks of a cluster: the lengths of prompts and answers, fixed or from a trace.

Means mislead where lengths are heavy-tailed: what decode holds is weighted by how long a request
stays, and how long prefill makes others wait depends on the variance of prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from workers.perf.arrays import Floats
from workers.perf.errors import PerfError

_BINS = 12


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests to plan for.

    Attributes:
        isl, weights: lengths of prompts that stand for all of them, and their shares.
        isl_percentile: the prompt length that the share `percentile` of prompts does not exceed.
        mean_osl: tokens of an answer on average.
        osl_scv: squared coefficient of variation of answers.
        context: tokens cached for a decoding request, averaged over steps.
        held: tokens of a decoding request at its end, averaged over steps: what memory must hold.
        prefix_hit: share of a prompt's tokens that a prefill worker has cached.
    """

    isl: Floats
    weights: Floats
    isl_percentile: float
    mean_osl: float
    osl_scv: float
    context: float
    held: float
    prefix_hit: float
    description: str

    @property
    def mean_isl(self) -> float:
        """Tokens of a prompt on average."""
        return float(np.sum(self.isl * self.weights))

    @property
    def isl_scv(self) -> float:
        """Squared coefficient of variation of prompts."""
        return float(np.sum(self.isl**2 * self.weights)) / self.mean_isl**2 - 1.0

    @property
    def decoded(self) -> float:
        """Tokens that decode makes for a request: all but the first."""
        return max(self.mean_osl - 1.0, 1.0)


def fixed(isl: float, osl: float, prefix_hit: float = 0.0) -> Workload:
    """Every request alike. Raises PerfError."""
    _check(isl, osl, prefix_hit)
    return Workload(
        isl=np.array([float(isl)]),
        weights=np.ones(1),
        isl_percentile=float(isl),
        mean_osl=float(osl),
        osl_scv=0.0,
        context=isl + osl / 2.0,
        held=float(isl + osl),
        prefix_hit=prefix_hit,
        description=f"ISL {isl:g}, OSL {osl:g}",
    )


def sampled(
    isl: Sequence[float],
    osl: Sequence[float],
    *,
    percentile: float,
    prefix_hit: float = 0.0,
    name: str = "trace",
) -> Workload:
    """Requests as they were seen; lengths of prompts are grouped into bins of equal count.

    Raises:
        PerfError: no requests, or a length below 1.
    """
    prompts, answers = np.asarray(isl, np.float64), np.asarray(osl, np.float64)
    if prompts.size == 0 or prompts.size != answers.size:
        raise PerfError(f"{name}: expected as many prompt lengths as answer lengths, at least one")
    _check(float(prompts.min()), float(answers.min()), prefix_hit)
    groups = np.array_split(np.sort(prompts), min(_BINS, prompts.size))
    stay = answers / answers.sum()
    return Workload(
        isl=np.array([group.mean() for group in groups]),
        weights=np.array([group.size / prompts.size for group in groups]),
        isl_percentile=float(np.quantile(prompts, percentile)),
        mean_osl=float(answers.mean()),
        osl_scv=float(answers.var() / answers.mean() ** 2),
        context=float(np.sum(stay * (prompts + answers / 2.0))),
        held=float(np.sum(stay * (prompts + answers))),
        prefix_hit=prefix_hit,
        description=f"{name}: {prompts.size} requests, mean ISL {prompts.mean():.0f}, "
        f"mean OSL {answers.mean():.0f}",
    )


def _check(isl: float, osl: float, prefix_hit: float) -> None:
    if isl < 1:
        raise PerfError(f"isl {isl:g}: a prompt has at least one token")
    if osl < 1:
        raise PerfError(f"osl {osl:g}: an answer has at least one token")
    if not 0.0 <= prefix_hit < 1.0:
        raise PerfError(f"prefix_hit {prefix_hit:g}: must be at least 0 and below 1")
