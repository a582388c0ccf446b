"""LatentMoE: sigmoid router, experts in a narrow latent dimension, one shared expert.

Exists to hold the routing rule once and the ways to run experts beside each other: gathered (one
token), dense (small experts, a few tokens, training) and grouped (the rest). Formula
(arXiv 2601.18089 with the DeepSeek-V3 router, as in transformers' NemotronHMoE):
s = sigmoid(W_g x) in float32; choose the top k of s + bias inside the best groups;
w = s / (sum + 1e-20) * scaling;
y = W_up sum_i w_i down_i(relu2(up_i(W_down x))) + shared(x).
t tokens, k experts per token, E experts, l latent, m expert hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from workers.kernels import dispatch
from workers.kernels.cpu import calls, layers
from workers.model import expert_ranks, mlp
from workers.model.config import ModelConfig
from workers.model.linear import linear, squared_relu
from workers.model.weights import MoeWeights

# What the calls around one expert's two products cost, in the work that a core does in that time
# (20 us at 200 GFLOP/s, measured on AVX-512 in float32).
_OVERHEAD_FLOPS = 4_000_000
# Gathering reads and writes the chosen experts once more: up to so many elements it stays in cache.
_GATHER_LIMIT = 500_000
# Up to so many pairs of token and expert our own kernel reads an expert for each of them, where
# there are no panels.
_KERNEL_TASKS = 64
# And this many where there are: what each pair adds is kept until all are there, as float32 [l].
_PANEL_TASKS = 16_384
# Below this many rows a product is bound by reading its matrix, and costs as much as with them.
_MEMORY_BOUND_ROWS = 8


@dataclass(frozen=True, slots=True)
class Routing:
    """Which experts each token uses: indices int64 [t, k] and weights float32 [t, k]."""

    indices: Tensor
    weights: Tensor


RunExperts = Callable[[Tensor, Routing, MoeWeights], Tensor]


def route(x: Tensor, weights: MoeWeights, config: ModelConfig) -> Routing:
    """Choose experts for x [t, d]."""
    logits = weights.gate(x.float())
    if config.n_group == 1 and calls.suits(logits):
        return Routing(*layers.route(logits, weights, config))
    scores = logits.sigmoid_()
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
    """The chosen experts of one token, side by side as one expert. x and result [1, l]."""
    chosen = routing.indices[0]
    up = weights.expert_up.index_select(0, chosen)
    down = weights.expert_down.index_select(0, chosen)
    hidden = squared_relu(functional.linear(x, up.flatten(0, 1)))
    hidden = hidden.view(up.shape[:2]) * routing.weights[0].to(x.dtype).unsqueeze(-1)
    return hidden.view(1, -1) @ down.flatten(0, 1)


def experts_grouped(x: Tensor, routing: Routing, weights: MoeWeights) -> Tensor:
    """Tokens sorted by expert, one product per expert that is used. x and result [t, l]."""
    chosen = routing.indices.flatten()
    order = torch.argsort(chosen, stable=True)
    tokens = order // routing.indices.shape[1]
    scale = routing.weights.flatten()[order].unsqueeze(-1)
    counts = torch.bincount(chosen, minlength=len(weights.expert_up)).tolist()
    rows = x.index_select(0, tokens)
    result = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    start = 0
    for expert, count in enumerate(counts):
        if not count:
            continue
        end = start + count
        hidden = squared_relu(linear(rows[start:end], weights.expert_up[expert]))
        out = linear(hidden, weights.expert_down[expert].t()).float() * scale[start:end]
        # A token names an expert at most once, so no two rows add to the same place.
        result = result.index_add(0, tokens[start:end], out)
        start = end
    return result.to(x.dtype)


def experts_dense(x: Tensor, routing: Routing, weights: MoeWeights) -> Tensor:
    """All experts for all tokens as two matrix products, unused ones weighted 0."""
    experts, size, _ = weights.expert_up.shape
    share = torch.zeros(len(x), experts, device=x.device)
    share = share.scatter(1, routing.indices, routing.weights).to(x.dtype)
    hidden = weights.all_up.squared_relu(x)
    hidden.view(-1, experts, size).mul_(share.unsqueeze(-1))
    return weights.all_down(hidden)


def most_tasks(weights: MoeWeights) -> int:
    """Up to so many pairs of token and expert our own kernel is the quickest way."""
    return _KERNEL_TASKS if layers.expert_panels(weights) is None else _PANEL_TASKS


def experts(x: Tensor, routing: Routing, weights: MoeWeights) -> Tensor:
    """Run the chosen experts in the way that suits their size and number. x and result [t, l]."""
    if dispatch.suits(x):
        return dispatch.experts(x, routing, weights)
    tokens, chosen = routing.indices.shape
    count, size, narrow = weights.expert_up.shape
    if tokens * chosen <= most_tasks(weights) and calls.suits(x):
        return layers.experts(x, routing.indices, routing.weights, weights)
    if tokens == 1 and 2 * chosen * size * narrow <= _GATHER_LIMIT:
        return experts_gathered(x, routing, weights)
    used = min(count, tokens * chosen)
    # Work that only the dense way does, against calls that only the grouped way makes.
    idle_flops = 4 * size * narrow * (count - chosen) * max(tokens, _MEMORY_BOUND_ROWS)
    run = experts_dense if idle_flops <= used * _OVERHEAD_FLOPS else experts_grouped
    return run(x, routing, weights)


def apply(
    x: Tensor, routing: Routing, weights: MoeWeights, run_experts: RunExperts = experts
) -> Tensor:
    """The layer's output [t, d] for normed x [t, d] and its routing."""
    narrow = x
    if weights.latent_down is not None:
        narrow = weights.latent_down(x)
    mixed = run_experts(narrow, routing, weights)
    if weights.latent_up is not None:
        mixed = weights.latent_up(mixed)
    return mixed if weights.shared is None else mixed + mlp.mix(x, weights.shared)


def mix(x: Tensor, weights: MoeWeights, config: ModelConfig) -> Tensor:
    """Route and run: normed x [..., d] -> [..., d]."""
    flat = x.view(-1, x.shape[-1])
    routing = route(flat, weights, config)
    if weights.ranks is not None:
        chosen, shares = routing.indices, routing.weights
        return expert_ranks.apply(flat, chosen, shares, weights, weights.ranks).view(x.shape)
    return apply(flat, routing, weights).view(x.shape)
