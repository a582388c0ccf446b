"""Keeps experts evenly used without an auxiliary loss.

Exists because a router that is left alone soon uses few experts. After each step the correction
bias of an expert that got more than its share of tokens goes down by a fixed amount, and of one
that got less goes up (arXiv 2408.15664); it changes the choice of experts, never their weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workers.model.weights import MoeWeights


class ExpertBalance:
    """Counts the tokens each expert got during one step, then adjusts the biases."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._counts: dict[int, tuple[Tensor, Tensor]] = {}

    def observe(self, weights: MoeWeights, indices: Tensor) -> None:
        """Add the choices of one MoE call; indices int64 [t, k]."""
        bias = weights.correction_bias
        counts = torch.bincount(indices.flatten(), minlength=bias.shape[0]).float()
        if id(bias) in self._counts:
            counts = counts + self._counts[id(bias)][1]
        self._counts[id(bias)] = (bias, counts)

    def adjust(self, scale: float) -> float:
        """Move all biases by rate * scale; return the highest load over the mean load seen."""
        worst = 1.0
        for bias, counts in self._counts.values():
            bias += self._rate * scale * torch.sign(counts.mean() - counts)
            bias -= bias.mean()
            worst = max(worst, float(counts.max() / counts.mean()))
        self._counts.clear()
        return worst
