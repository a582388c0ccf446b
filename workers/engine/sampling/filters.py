"""Which tokens may be sampled and how likely each is: temperature, top-k, top-p, min-p, in order.

Filters are thresholds, not positions in a sorted list: tokens that are equally likely are kept or
dropped together, and the draw goes through the vocabulary in its own order, so that two tokens
that nearly tie do not change places under rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from workers.engine.commands import Sampling

_TOP_P_CANDIDATES = 256


def probabilities(logits: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """float64 [rows, vocab]: weights to sample by, not normalised; 0 for what is filtered out.

    Args:
        logits: float32 [rows, vocab], with -inf where a token is forbidden.
        samplings: one for each row, each with a temperature above 0.
    """
    # From the largest logit down, so that no temperature overflows.
    largest = logits.amax(dim=-1, keepdim=True)
    weights = ((logits - largest).double() / _column(_temperatures(samplings), logits)).exp()
    weights = _keep_top_k(weights, [sampling.top_k for sampling in samplings])
    weights = _keep_top_p(weights, [sampling.top_p for sampling in samplings])
    return _keep_min_p(weights, [sampling.min_p for sampling in samplings])


def draw(weights: Tensor, numbers: Sequence[float]) -> Tensor:
    """int64 [rows]: the tokens at which the cumulative weight passes each row's number.

    Args:
        weights: float64 [rows, vocab], not negative, at least one positive in each row.
        numbers: uniform in [0, 1), one for each row.
    """
    cumulative = weights.cumsum(dim=-1)
    total = cumulative[:, -1:]
    # Strictly below the total even after rounding, so that a token of weight 0 is never met.
    aims = torch.minimum(_column(numbers, weights) * total, total.nextafter(total.new_zeros(())))
    return torch.searchsorted(cumulative, aims, right=True)[:, 0]


def _keep_top_k(weights: Tensor, ks: list[int]) -> Tensor:
    """Keep the `k` most likely tokens and those as likely as the last of them; 0 keeps all."""
    vocab_size = weights.shape[1]
    rows = [row for row, k in enumerate(ks) if 0 < k < vocab_size]
    if not rows:
        return weights
    largest = weights[rows].topk(max(ks[row] for row in rows), dim=-1).values
    last = torch.tensor([ks[row] - 1 for row in rows], device=weights.device)
    return _drop_below(weights, rows, largest.gather(1, last[:, None]))


def _keep_top_p(weights: Tensor, ps: list[float]) -> Tensor:
    """Keep each token while those before it have less than `p` of the mass: always at least one."""
    rows = [row for row, p in enumerate(ps) if p < 1.0]
    if not rows:
        return weights
    chosen = weights[rows]
    mass = _column([ps[row] for row in rows], weights) * chosen.sum(dim=-1, keepdim=True)
    # Sorting a vocabulary takes longer than all the rest, and few tokens have most of the mass.
    few = min(_TOP_P_CANDIDATES, chosen.shape[1])
    thresholds, found = _mass_thresholds(chosen.topk(few, dim=-1).values, mass)
    if few < chosen.shape[1] and not bool(found.all()):
        flat = ~found[:, 0]
        ordered = chosen[flat].sort(dim=-1, descending=True).values
        thresholds[flat] = _mass_thresholds(ordered, mass[flat])[0]
    return _drop_below(weights, rows, thresholds)


def _mass_thresholds(ordered: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
    """The last weight of each row that is needed to reach `mass` [rows, 1], and whether it does."""
    cumulative = ordered.cumsum(dim=-1)
    kept = (cumulative - ordered < mass).sum(dim=-1, keepdim=True)
    return ordered.gather(1, (kept - 1).clamp(min=0)), cumulative[:, -1:] >= mass


def _keep_min_p(weights: Tensor, ps: list[float]) -> Tensor:
    """Keep tokens at least `p` times as likely as the most likely one."""
    rows = [row for row, p in enumerate(ps) if p > 0.0]
    if not rows:
        return weights
    threshold = _column([ps[row] for row in rows], weights) * weights[rows].amax(-1, keepdim=True)
    return _drop_below(weights, rows, threshold)


def _drop_below(weights: Tensor, rows: list[int], thresholds: Tensor) -> Tensor:
    chosen = weights[rows]
    filtered = chosen.masked_fill(chosen < thresholds, 0.0)
    if len(rows) == len(weights):
        return filtered
    weights[rows] = filtered
    return weights


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=like.device)[:, None]


def _temperatures(samplings: Sequence[Sampling]) -> list[float]:
    return [sampling.temperature for sampling in samplings]
