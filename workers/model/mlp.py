"""The non-gated MLP with squared ReLU: the `-` layer and the shared expert of the MoE."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from workers.model.weights import MlpWeights


def relu2(x: Tensor) -> Tensor:
    """max(x, 0)^2, the activation of every MLP and expert in the model; x is overwritten."""
    return functional.relu(x, inplace=True).square()


def mix(x: Tensor, weights: MlpWeights) -> Tensor:
    """down(relu2(up(x))); x and result [..., d]."""
    hidden = relu2(weights.up(x))
    out = weights.down(hidden)
    return out if weights.ranks is None else weights.ranks.sum(out)
