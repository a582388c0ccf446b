"""RMS normalisation, plain and gated by groups.

Exists apart because every layer uses the first, and because of the second a rank may hold a part
of a group only: then its sum of squares is added up over the ranks that share the group. Both work
in float32 and return the dtype of their input, as transformers' NemotronHRMSNorm and
Zamba2RMSNormGated do.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from workers.kernels.cpu import calls, layers
from workers.model.ranks import Ranks


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension; same shape and dtype as x."""
    if calls.suits(x):
        return layers.add_norm(x.contiguous(), None, weight, eps)
    return torch.rms_norm(x, weight.shape, weight, eps)


def add_norm(x: Tensor, added: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Add to the residual stream x in place, and return `rms_norm` of it; x is contiguous."""
    if calls.suits(x):
        return layers.add_norm(x, added, weight, eps)
    x += added
    return rms_norm(x, weight, eps)


def gated_group_norm(
    y: Tensor, gate: Tensor, weight: Tensor, groups: int, eps: float, ranks: Ranks | None = None
) -> Tensor:
    """Normalise y * silu(gate) in `groups` equal parts of the last dimension, then scale.

    Args:
        y: [..., inner], the scan output.
        gate: [..., inner], in the model dtype; the result has this dtype.
        weight: [inner].
        groups: parts normalised on their own (the Mamba groups).
        eps: added to the variance.
        ranks: the ranks that y is spread over; None when it is whole.
    """
    parts = torch.unflatten(y.float() * functional.silu(gate.float()), -1, (groups, -1))
    if ranks is None or ranks.ranks_per_group == 1:
        normed = torch.rms_norm(parts, parts.shape[-1:], None, eps).flatten(-2)
    else:
        squares = ranks.sum_over_group(parts.square().sum(dim=-1, keepdim=True))
        size = parts.shape[-1] * ranks.ranks_per_group
        normed = (parts * torch.rsqrt(squares / size + eps)).flatten(-2)
    return (weight * normed).to(gate.dtype)
