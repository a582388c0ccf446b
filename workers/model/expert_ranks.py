"""LatentMoE whose experts are spread over ranks.

Exists because a rank that has only some of the experts, or some of their columns, can neither use
the routing as it is nor finish the layer. The batch is on every rank, so nothing is dispatched:
each runs its own experts, and the partial sums are added in the latent dimension, before the
up-projection, which is alpha = d / l times fewer bytes than after it (arXiv 2601.18089). The
shared expert's partial sums are full width; both travel in one message, since a second collective
costs more than the copy.
t tokens, k experts per token, l latent.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workers.kernels import dispatch
from workers.model import mlp
from workers.model.linear import linear, squared_relu
from workers.model.ranks import Ranks
from workers.model.weights import MoeWeights

# Up to so many tokens all experts of a rank run as two products, weighted 0 where not chosen.
_DENSE_TOKENS = 16


def apply(x: Tensor, indices: Tensor, shares: Tensor, weights: MoeWeights, ranks: Ranks) -> Tensor:
    """The layer's output [t, d], the same on every rank.

    Args:
        x: [t, d], normed.
        indices: int64 [t, k], the experts of each token, numbered over all ranks.
        shares: float32 [t, k], their weights.
        weights: this rank's part of the layer.
        ranks: the others.
    """
    narrow = x if weights.latent_down is None else weights.latent_down(x)
    first = ranks.layout.ep_rank(ranks.rank) * len(weights.expert_up)
    partial = own_experts(narrow, indices - first, shares, weights)
    if weights.shared is None:
        total = ranks.sum(partial)
        return total if weights.latent_up is None else weights.latent_up(total)
    shared = mlp.mix(x, weights.shared)
    if weights.latent_up is None:
        return ranks.sum(partial + shared)
    sizes = [partial.shape[-1], shared.shape[-1]]
    total = ranks.sum(torch.cat([partial, shared], dim=-1))
    partial, shared = torch.split(total, sizes, dim=-1)
    return weights.latent_up(partial) + shared


def own_experts(x: Tensor, indices: Tensor, shares: Tensor, weights: MoeWeights) -> Tensor:
    """The partial sums [t, l] of the experts that this rank has.

    Args:
        x: [t, l].
        indices: int64 [t, k], counted from this rank's first expert; others are elsewhere.
        shares: float32 [t, k].
        weights: their `expert_up` and `expert_down` are used.
    """
    experts = len(weights.expert_up)
    own = (indices >= 0) & (indices < experts)
    if dispatch.suits(x):
        from workers.model.moe import Routing

        routing = Routing(indices.where(own, 0), shares.where(own, 0.0))
        return dispatch.experts(x, routing, weights)
    # One expert more stands for all that are elsewhere.
    slots = indices.where(own, experts)
    if len(x) <= _DENSE_TOKENS:
        return _dense(x, slots, shares, weights)
    return _grouped(x, slots, shares, weights)


def _dense(x: Tensor, slots: Tensor, shares: Tensor, weights: MoeWeights) -> Tensor:
    experts, size, _ = weights.expert_up.shape
    table = torch.zeros(len(x), experts + 1, device=x.device)
    table = table.scatter(1, slots, shares)[:, :experts].to(x.dtype)
    hidden = weights.all_up.squared_relu(x)
    hidden.view(-1, experts, size).mul_(table.unsqueeze(-1))
    return weights.all_down(hidden)


def _grouped(x: Tensor, slots: Tensor, shares: Tensor, weights: MoeWeights) -> Tensor:
    chosen = slots.flatten()
    order = torch.argsort(chosen, stable=True)
    tokens = order // slots.shape[1]
    scale = shares.flatten()[order].unsqueeze(-1)
    counts = torch.bincount(chosen, minlength=len(weights.expert_up) + 1).tolist()
    result = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    start = 0
    for expert, count in enumerate(counts[:-1]):
        if not count:
            continue
        end = start + count
        rows = x.index_select(0, tokens[start:end])
        hidden = squared_relu(linear(rows, weights.expert_up[expert]))
        out = linear(hidden, weights.expert_down[expert].t()).float() * scale[start:end]
        # A token names an expert at most once, so no two rows add to the same place.
        result = result.index_add(0, tokens[start:end], out)
        start = end
    return result.to(x.dtype)
