"""Grouped-query attention without positional embedding, over dense and over paged keys.

Exists to keep the one softmax of the model in one place: training and the first chunk of a
prompt attend over what they just computed; later chunks and decode read keys and values from
blocks. Scores are scaled by 1/sqrt(head_dim); the softmax is float32. t tokens, s keys.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from workers.model.config import ModelConfig
from workers.model.paging import DecodePages, PrefillPages
from workers.model.weights import AttentionWeights


def project_qkv(
    x: Tensor, weights: AttentionWeights, config: ModelConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """q [..., heads, head_dim], k and v [..., kv_heads, head_dim] of normed x [..., d]."""
    fused = functional.linear(x, weights.qkv, weights.qkv_bias)
    sizes = [config.query_size, config.key_value_size, config.key_value_size]
    q, k, v = torch.split(fused, sizes, dim=-1)
    return (
        torch.unflatten(q, -1, (config.num_attention_heads, config.head_dim)),
        torch.unflatten(k, -1, (config.num_key_value_heads, config.head_dim)),
        torch.unflatten(v, -1, (config.num_key_value_heads, config.head_dim)),
    )


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    """Softmax attention of t queries over s keys.

    Args:
        q: [b, t, heads, head_dim].
        k: [b, s, kv_heads, head_dim].
        v: [b, s, kv_heads, head_dim].
        visible: bool [t, s] (or broadcastable to [b, heads, t, s]), True where a query may look;
            None means causal with t = s.

    Returns:
        [b, t, heads * head_dim].
    """
    out = functional.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=visible,
        is_causal=visible is None,
        enable_gqa=True,
    )
    return out.transpose(1, 2).flatten(-2)


def project_out(mixed: Tensor, weights: AttentionWeights) -> Tensor:
    """Output projection, [..., heads * head_dim] -> [..., d]."""
    return functional.linear(mixed, weights.out, weights.out_bias)


def prefill(
    x: Tensor,
    kv: Tensor,
    layer: int,
    pages: PrefillPages,
    weights: AttentionWeights,
    config: ModelConfig,
) -> Tensor:
    """Attend over `pages.context_tokens` stored tokens and the t new ones; store the new.

    Args:
        x: [t, d], normed.
        kv: [num_blocks, layers, 2, kv_heads, block_size, head_dim], written in place.
        layer: index into dimension 1 of kv.
        pages: where the tokens of this request live.
        weights: the layer.
        config: the shape.

    Returns:
        [t, d].
    """
    q, k, v = project_qkv(x, weights, config)
    planes = kv[:, layer]
    pages.write(planes, k, v)
    if pages.context_tokens == 0:
        mixed = attend(q[None], k[None], v[None], None)
    else:
        stored_k, stored_v = pages.read(planes)
        mixed = attend(q[None], stored_k[None], stored_v[None], pages.visible)
    return project_out(mixed[0], weights)


def decode(
    x: Tensor,
    kv: Tensor,
    layer: int,
    pages: DecodePages,
    weights: AttentionWeights,
    config: ModelConfig,
) -> Tensor:
    """Attend one new token per request over its stored tokens and itself; store it.

    Args:
        x: [b, d], normed.
        kv: as in `prefill`.
        layer: index into dimension 1 of kv.
        pages: where the tokens of each request live.
        weights: the layer.
        config: the shape.

    Returns:
        [b, d].
    """
    q, k, v = project_qkv(x, weights, config)
    planes = kv[:, layer]
    pages.write(planes, k, v)
    stored_k, stored_v = pages.read(planes)  # [b, kv_heads, s, head_dim]
    # [b, kv_heads, query heads that share one, head_dim]
    grouped = torch.unflatten(q, 1, (config.num_key_value_heads, -1))
    scores = (grouped @ stored_k.transpose(-1, -2)) * config.head_dim**-0.5
    scores = scores.float().masked_fill(~pages.valid[:, None, None, :], -torch.inf)
    mixed = torch.softmax(scores, dim=-1).to(q.dtype) @ stored_v
    return project_out(mixed.flatten(1), weights)
