"""RMS normalisation, plain and gated by groups.

Exists apart because every layer uses the first and sharded Mamba must replace the second (its
sum of squares is reduced over ranks that share a group). Both work in float32 and return the
dtype of their input, as transformers' NemotronHRMSNorm and Zamba2RMSNormGated do.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension; same shape and dtype as x."""
    wide = x.float()
    variance = wide.pow(2).mean(-1, keepdim=True)
    return (weight.float() * (wide * torch.rsqrt(variance + eps))).to(x.dtype)


def gated_group_norm(y: Tensor, gate: Tensor, weight: Tensor, groups: int, eps: float) -> Tensor:
    """Normalise y * silu(gate) in `groups` equal parts of the last dimension, then scale.

    Args:
        y: [..., inner], the scan output.
        gate: [..., inner], in the model dtype; the result has this dtype.
        weight: [inner].
        groups: parts normalised on their own (the Mamba groups).
        eps: added to the variance.
    """
    gated = y.float() * functional.silu(gate.float())
    parts = torch.unflatten(gated, -1, (groups, -1))
    variance = parts.pow(2).mean(-1, keepdim=True)
    normed = (parts * torch.rsqrt(variance + eps)).flatten(-2)
    return (weight.float() * normed).to(gate.dtype)
