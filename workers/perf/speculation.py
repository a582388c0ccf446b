"""What speculative decoding gains: acceptance lengths and speed-ups.

Formulas of SPEED-Bench (arXiv 2604.09557) and of its use in rollouts (arXiv 2604.26779).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from workers.perf.arrays import Floats
from workers.perf.errors import PerfError


def acceptance_length(rates: Sequence[float]) -> float:
    """AL = 1 + sum_i prod_{j<=i} AR_j, the free token included (SPEED-Bench, metrics).

    Args:
        rates: AR_i, the share of drafts at position i accepted where all before them were.
    """
    return 1.0 + float(np.sum(np.cumprod(rates)))


def acceptance_lengths(rate: float, draft_tokens: Floats) -> Floats:
    """AL at several draft lengths when every position is accepted at the same rate.

    The geometric sum (1 - p^(k+1)) / (1 - p) (Leviathan, Kalman and Matias, arXiv 2211.17192,
    equation 1).
    """
    if rate >= 1.0:
        return draft_tokens + 1.0
    return (1.0 - rate ** (draft_tokens + 1.0)) / (1.0 - rate)


def acceptance_rate(length: float, draft_tokens: int) -> float:
    """The rate at which `draft_tokens` drafts give an acceptance length, by bisection.

    Raises:
        PerfError: no rate between 0 and 1 gives that length.
    """
    if not 1.0 <= length <= draft_tokens + 1.0:
        raise PerfError(
            f"acceptance {length:g}: with {draft_tokens} draft tokens it must be from 1 to "
            f"{draft_tokens + 1}, the free token included"
        )
    low, high = 0.0, 1.0
    drafts = np.array(float(draft_tokens))
    for _ in range(50):
        middle = (low + high) / 2.0
        if float(acceptance_lengths(middle, drafts)) < length:
            low = middle
        else:
            high = middle
    return (low + high) / 2.0


def speedup(plain_step_s: float, length: float, speculative_step_s: float) -> float:
    """t_ar x AL / t_sd (SPEED-Bench, appendix with table 10)."""
    return plain_step_s * length / speculative_step_s


def rollout_speedup_bound(generation_share: float, generation_speedup: float) -> float:
    """S_step <= 1 / (R/alpha + 1 - R) of a training step (arXiv 2604.26779; Amdahl's law).

    Args:
        generation_share: R, the share of a step that is generation.
        generation_speedup: alpha, how much faster generation becomes.
    """
    return 1.0 / (generation_share / generation_speedup + 1.0 - generation_share)
