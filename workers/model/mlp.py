"""The non-gated MLP with squared ReLU: the `-` layer and the shared expert of the MoE."""

from __future__ import annotations

from torch import Tensor

from workers.model.weights import MlpWeights


def mix(x: Tensor, weights: MlpWeights) -> Tensor:
    """down(relu2(up(x))); x and result [..., d]."""
    out = weights.down(weights.up.squared_relu(x))
    return out if weights.ranks is None else weights.ranks.sum(out)
