"""The multi-token prediction block: drafts the tokens after the next one.

Exists apart from the backbone because it has its own KV and is applied recursively: its output
at a position is the hidden state of the next recursion. Semantics of Nemotron 3 (as in vLLM's
`nemotron_h_mtp.py`): with h_t the backbone's hidden state after norm_f and e the embedding of
token t+1, x = W [norm(e), norm(h_t)], then the block's residual layers, then final_layernorm;
lm_head of the result scores token t+2.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from workers.model import attention, mlp, moe
from workers.model.config import ModelConfig
from workers.model.norm import rms_norm
from workers.model.paging import DecodePages, PrefillPages
from workers.model.weights import AttentionWeights, MlpWeights, MoeWeights, MtpWeights

Attend = Callable[[Tensor, int, AttentionWeights], Tensor]
RunMoe = Callable[[Tensor, MoeWeights], Tensor]


def combine(embedding: Tensor, hidden: Tensor, weights: MtpWeights, config: ModelConfig) -> Tensor:
    """Join the next token's embedding and the hidden state, both [..., d], into [..., d]."""
    eps = config.layer_norm_epsilon
    left = rms_norm(embedding, weights.embedding_norm, eps)
    right = rms_norm(hidden, weights.hidden_norm, eps)
    return functional.linear(torch.cat([left, right], dim=-1), weights.combine)


def run_block(
    x: Tensor, weights: MtpWeights, config: ModelConfig, attend: Attend, run_moe: RunMoe
) -> Tensor:
    """The block's residual layers and its final norm on combined x.

    Args:
        x: [..., d] from `combine`.
        weights: the block.
        config: the shape.
        attend: called with normed x, the index among the block's attention layers and its
            weights; it owns the keys and values.
        run_moe: called with normed x and the weights of a MoE layer.

    Returns:
        The hidden state [..., d] for lm_head and for the next recursion.
    """
    attention_layer = 0
    for layer in weights.layers:
        normed = rms_norm(x, layer.norm, config.layer_norm_epsilon)
        match layer.mixer:
            case AttentionWeights() as mixer:
                x = x + attend(normed, attention_layer, mixer)
                attention_layer += 1
            case MoeWeights() as mixer:
                x = x + run_moe(normed, mixer)
            case MlpWeights() as mixer:
                x = x + mlp.mix(normed, mixer)
            case _:
                raise TypeError(f"the MTP block cannot hold a {layer.kind.name} layer")
    return rms_norm(x, weights.final_norm, config.layer_norm_epsilon)


def prefill(
    embedding: Tensor,
    hidden: Tensor,
    draft_kv: Tensor,
    pages: PrefillPages,
    weights: MtpWeights,
    config: ModelConfig,
) -> Tensor:
    """One recursion for t positions of one request, storing their draft keys and values.

    Args:
        embedding: [t, d], embeddings of the tokens after those positions.
        hidden: [t, d], hidden states of those positions.
        draft_kv: as `StateTensors.kv`, with the block's attention layers in dimension 1.
        pages: where the positions live in draft_kv.
        weights: the block.
        config: the shape.
    """
    return run_block(
        combine(embedding, hidden, weights, config),
        weights,
        config,
        lambda x, layer, w: attention.prefill(x, draft_kv, layer, pages, w, config),
        lambda x, w: moe.mix(x, w, config),
    )


def decode(
    embedding: Tensor,
    hidden: Tensor,
    draft_kv: Tensor,
    pages: DecodePages,
    weights: MtpWeights,
    config: ModelConfig,
) -> Tensor:
    """One recursion for one position of each of b requests; arguments as in `prefill`."""
    return run_block(
        combine(embedding, hidden, weights, config),
        weights,
        config,
        lambda x, layer, w: attention.decode(x, draft_kv, layer, pages, w, config),
        lambda x, w: moe.mix(x, w, config),
    )
