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

from workers.kernels.cpu.pages import PlannedPages
from workers.model import attention, mlp, moe
from workers.model.config import LayerKind, ModelConfig
from workers.model.kvp_paging import KvpPages
from workers.model.norm import rms_norm
from workers.model.paging import PrefillPages, WindowPages
from workers.model.weights import (
    AttentionWeights,
    LayerWeights,
    MlpWeights,
    MoeWeights,
    MtpWeights,
)

Attend = Callable[[Tensor, int, AttentionWeights], Tensor]
RunMoe = Callable[[Tensor, MoeWeights], Tensor]


def combine(embedding: Tensor, hidden: Tensor, weights: MtpWeights, config: ModelConfig) -> Tensor:
    """Join the next token's embedding and the hidden state, both [..., d], into [..., d]."""
    eps = config.layer_norm_epsilon
    left = rms_norm(embedding, weights.embedding_norm, eps)
    right = rms_norm(hidden, weights.hidden_norm, eps)
    return weights.combine(torch.cat([left, right], dim=-1))


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


def _last_attention(weights: MtpWeights) -> int:
    kinds = [layer.kind for layer in weights.layers]
    return max((i for i, kind in enumerate(kinds) if kind is LayerKind.ATTENTION), default=-1)


def prefill(
    embedding: Tensor,
    hidden: Tensor,
    draft_kv: Tensor,
    pages: PrefillPages | KvpPages,
    weights: MtpWeights,
    config: ModelConfig,
) -> None:
    """Store draft keys and values of t positions of one request.

    Nothing else of the block is computed: what a prompt's positions would draft is known.

    Args:
        embedding: [t, d], embeddings of the tokens after those positions.
        hidden: [t, d], the backbone's hidden states of those positions.
        draft_kv: as `StateTensors.draft_kv`.
        pages: where the positions live in draft_kv.
        weights: the block.
        config: the shape.
    """
    x = combine(embedding, hidden, weights, config)
    attention_layer, last = 0, _last_attention(weights)
    for index, layer in enumerate(weights.layers[: last + 1]):
        normed = rms_norm(x, layer.norm, config.layer_norm_epsilon)
        match layer.mixer:
            case AttentionWeights() as mixer if index == last:
                kv = attention.project_kv(normed, mixer, config)
                pages.write(draft_kv[:, attention_layer], kv)
            case AttentionWeights() as mixer:
                x = x + attention.prefill(normed, draft_kv, attention_layer, pages, mixer, config)
                attention_layer += 1
            case _:
                x = x + _mix(normed, layer, config)


def window(
    embedding: Tensor,
    hidden: Tensor,
    last: Tensor,
    draft_kv: Tensor,
    pages: tuple[WindowPages | PlannedPages | KvpPages, WindowPages | PlannedPages | KvpPages],
    weights: MtpWeights,
    config: ModelConfig,
) -> Tensor:
    """One recursion for w positions of each of b requests, of which the last valid one drafts.

    Args:
        embedding: [b, w, d], embeddings of the tokens after those positions.
        hidden: [b, w, d], hidden states of those positions.
        last: int64 [b], the position of each request whose output is wanted, 0 to w - 1.
        draft_kv: as `StateTensors.draft_kv`; all w positions are stored.
        pages: where the positions live in draft_kv: with every position a query, and with `last`
            the only one.
        weights: the block.
        config: the shape.

    Returns:
        [b, d], the hidden state of `last`.
    """
    eps = config.layer_norm_epsilon
    x = combine(embedding, hidden, weights, config)
    attention_layer, narrow_at = 0, _last_attention(weights)
    if narrow_at < 0:
        x = attention.take(x, last)
    for index, layer in enumerate(weights.layers):
        normed = rms_norm(x, layer.norm, eps)
        match layer.mixer:
            case AttentionWeights() as mixer if index == narrow_at:
                # Later layers need one position, so this one makes keys of all but queries of one.
                mixed = attention.window_last(
                    normed, last, draft_kv, attention_layer, pages[1], mixer, config
                )
                x = attention.take(x, last) + mixed
            case AttentionWeights() as mixer:
                x = x + attention.window(normed, draft_kv, attention_layer, pages[0], mixer, config)
                attention_layer += 1
            case _:
                x = x + _mix(normed, layer, config)
    return rms_norm(x, weights.final_norm, eps)


def _mix(normed: Tensor, layer: LayerWeights, config: ModelConfig) -> Tensor:
    """A layer without state, over [..., d]."""
    match layer.mixer:
        case MoeWeights() as mixer:
            return moe.mix(normed, mixer, config)
        case MlpWeights() as mixer:
            return mlp.mix(normed, mixer)
        case _:
            raise TypeError(f"the MTP block cannot hold a {layer.kind.name} layer")
