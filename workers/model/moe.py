"""LatentMoE: sigmoid router, experts in a narrow latent dimension, one shared expert.

Exists to hold the routing rule once and the ways to run experts beside each other: gathered
(a few tokens), grouped (many tokens), dense (training). Formula (arXiv 2601.18089 with the
DeepSeek-V3 router, as in transformers' NemotronHMoE): s = sigmoid(W_g x) in float32; choose the
top k of s + bias inside the best groups; w = s / (sum + 1e-20) * scaling;
y = W_up sum_i w_i down_i(relu2(up_i(W_down x))) + shared(x).
t tokens, k experts per token, E experts, l latent, m expert hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from workers.model import mlp
from workers.model.config import ModelConfig
from workers.model.weights import MoeWeights

# Gathering copies the chosen experts' matrices; beyond this it costs more than it saves.
_GATHER_LIMIT_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Routing:
    """Which experts each token uses: indices int64 [t, k] and weights float32 [t, k]."""

    indices: Tensor
    weights: Tensor


RunExperts = Callable[[Tensor, Routing, MoeWeights], Tensor]


def route(x: Tensor, weights: MoeWeights, config: ModelConfig) -> Routing:
    """Choose experts for x [t, d]."""
    scores = torch.sigmoid(functional.linear(x.float(), weights.gate.float()))
    choice = scores + weights.correction_bias
    if config.n_group > 1:
        groups = torch.unflatten(choice, -1, (config.n_group, -1))
        best = groups.topk(min(2, groups.shape[-1]), dim=-1).values.sum(-1)
        kept = torch.zeros_like(best, dtype=torch.bool)
        kept = kept.scatter(1, best.topk(config.topk_group, dim=-1, sorted=False).indices, True)
        choice = groups.masked_fill(~kept.unsqueeze(-1), -torch.inf).flatten(1)
    indices = choice.topk(config.num_experts_per_tok, dim=-1, sorted=False).indices
    chosen = scores.gather(1, indices)
    if config.norm_topk_prob:
        chosen = chosen / (chosen.sum(-1, keepdim=True) + 1e-20)
    return Routing(indices, chosen * config.routed_scaling_factor)


def experts_gathered(x: Tensor, routing: Routing, weights: MoeWeights) -> Tensor:
    """Batched products with a copy of each chosen expert; for a few tokens. x, result [t, l]."""
    pairs = x.repeat_interleave(routing.indices.shape[1], dim=0).unsqueeze(-1)  # [t k, l, 1]
    chosen = routing.indices.flatten()
    hidden = mlp.relu2(weights.expert_up[chosen] @ pairs)
    out = (weights.expert_down[chosen] @ hidden).view(*routing.indices.shape, -1)
    return (out.float() * routing.weights.unsqueeze(-1)).sum(1).to(x.dtype)


def experts_grouped(x: Tensor, routing: Routing, weights: MoeWeights) -> Tensor:
    """Tokens sorted by expert, one product per expert that is used. x and result [t, l]."""
    order = torch.argsort(routing.indices.flatten(), stable=True)
    tokens = order // routing.indices.shape[1]
    scale = routing.weights.flatten()[order].unsqueeze(-1)
    counts = torch.bincount(routing.indices.flatten(), minlength=weights.expert_up.shape[0])
    result = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    start = 0
    for expert, count in enumerate(counts.tolist()):
        if not count:
            continue
        rows = slice(start, start + count)
        hidden = mlp.relu2(functional.linear(x[tokens[rows]], weights.expert_up[expert]))
        out = functional.linear(hidden, weights.expert_down[expert])
        # A token names an expert at most once, so no two rows add to the same place.
        result = result.index_add(0, tokens[rows], out.float() * scale[rows])
        start += count
    return result.to(x.dtype)


def experts_dense(x: Tensor, routing: Routing, weights: MoeWeights) -> Tensor:
    """All experts for all tokens as two matrix products; for training small models."""
    share = torch.zeros(x.shape[0], weights.expert_up.shape[0], device=x.device)
    share = share.scatter(1, routing.indices, routing.weights).to(x.dtype)
    hidden = mlp.relu2(functional.linear(x, weights.expert_up.flatten(0, 1)))
    hidden = torch.unflatten(hidden, 1, weights.expert_up.shape[:2]) * share.unsqueeze(-1)
    return hidden.flatten(1) @ weights.expert_down.transpose(1, 2).flatten(0, 1)


def experts(x: Tensor, routing: Routing, weights: MoeWeights) -> Tensor:
    """Run the chosen experts in the way that suits the number of tokens. x and result [t, l]."""
    pairs, count = routing.indices.numel(), weights.expert_up.shape[0]
    copied_bytes = pairs * 2 * weights.expert_up[0].nbytes
    if pairs <= count and copied_bytes <= _GATHER_LIMIT_BYTES:
        return experts_gathered(x, routing, weights)
    return experts_grouped(x, routing, weights)


def apply(
    x: Tensor, routing: Routing, weights: MoeWeights, run_experts: RunExperts = experts
) -> Tensor:
    """The layer's output [t, d] for normed x [t, d] and its routing."""
    narrow = x
    if weights.latent_down is not None:
        narrow = functional.linear(x, weights.latent_down, weights.latent_down_bias)
    mixed = run_experts(narrow, routing, weights)
    if weights.latent_up is not None:
        mixed = functional.linear(mixed, weights.latent_up, weights.latent_up_bias)
    return mixed if weights.shared is None else mixed + mlp.mix(x, weights.shared)


def mix(x: Tensor, weights: MoeWeights, config: ModelConfig) -> Tensor:
    """Route and run: normed x [t, d] -> [t, d]."""
    return apply(x, route(x, weights, config), weights)
