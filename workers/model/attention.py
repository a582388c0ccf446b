"""Grouped-query attention without positional embedding, over dense and over paged keys.

Exists to keep the one softmax of the model in one place: training and the first chunk of a
prompt attend over what they just computed; later chunks and windows read keys and values from
blocks. Scores are scaled by 1/sqrt(head_dim); the softmax is float32. t tokens, s keys.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from workers.kernels import dispatch
from workers.kernels.cpu import attention as kernel
from workers.kernels.cpu import calls
from workers.kernels.cpu.pages import PlannedPages
from workers.model import kvp_attention
from workers.model.config import ModelConfig
from workers.model.kvp_paging import KvpPages
from workers.model.paging import PrefillPages, WindowPages
from workers.model.weights import AttentionWeights


def project_qkv(
    x: Tensor, weights: AttentionWeights, config: ModelConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """q [..., heads, head_dim], k and v [..., kv_heads, head_dim] of normed x [..., d]."""
    fused = weights.qkv(x)
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


def project_kv(x: Tensor, weights: AttentionWeights, config: ModelConfig) -> Tensor:
    """Keys and values alone, [n, 2, kv_heads, head_dim], of normed x [n, d]."""
    size, qkv = config.query_size, weights.qkv
    fused = functional.linear(x, qkv.weight[size:], None if qkv.bias is None else qkv.bias[size:])
    return fused.view(-1, 2, config.num_key_value_heads, config.head_dim)


def attend_pages(
    q: Tensor, planes: Tensor, pages: WindowPages | PlannedPages | KvpPages, config: ModelConfig
) -> Tensor:
    """Softmax attention of queries over the stored tokens of their requests.

    Args:
        q: [b, queries, heads * head_dim].
        planes: one layer of the KV tensor.
        pages: where the tokens live, and which of them each query sees.
        config: the shape.

    Returns:
        [b, queries, heads * head_dim]; of the heads, this rank's part when KVP ranks share them.
    """
    if isinstance(pages, KvpPages):
        return kvp_attention.attend(q, planes, pages, config)
    if isinstance(pages, PlannedPages):
        return kernel.attend(q, planes, pages.tables, pages.visible, config.num_attention_heads)
    if dispatch.suits(q):
        return dispatch.attend_pages(q, planes, pages, config)
    batch, queries, _ = q.shape
    kv_heads, head_dim = config.num_key_value_heads, config.head_dim
    share = config.num_attention_heads // kv_heads
    k, v = pages.read(planes)  # [kv_heads, b, keys, head_dim]
    # Query heads that share a key head become further queries, so no key is copied for them.
    split = q.view(batch, queries, kv_heads, share, head_dim).permute(2, 0, 3, 1, 4)
    mixed = functional.scaled_dot_product_attention(
        split.reshape(kv_heads, batch, share * queries, head_dim), k, v, attn_mask=pages.bias
    )
    mixed = mixed.view(kv_heads, batch, share, queries, head_dim).permute(1, 3, 0, 2, 4)
    return mixed.reshape(batch, queries, -1)


def project_out(mixed: Tensor, weights: AttentionWeights) -> Tensor:
    """Output projection, [..., heads * head_dim] -> [..., d]."""
    out = weights.out(mixed)
    return out if weights.ranks is None else weights.ranks.sum(out)


def prefill(
    x: Tensor,
    kv: Tensor,
    layer: int,
    pages: PrefillPages | KvpPages,
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
    pages.write(planes, torch.stack([k, v], dim=1))
    if isinstance(pages, KvpPages):
        mixed = kvp_attention.attend(q.flatten(-2)[None], planes, pages, config)
    elif calls.suits(q):
        flat = q.flatten(-2)[None]
        mixed = kernel.attend(flat, planes, pages.table[None], pages.seen[None], q.shape[1])
    elif pages.context_tokens == 0:
        mixed = attend(q[None], k[None], v[None], None)
    else:
        stored = pages.read(planes).transpose(1, 2)
        mixed = attend(q[None], stored[0][None], stored[1][None], pages.visible)
    return project_out(mixed[0], weights)


def window(
    x: Tensor,
    kv: Tensor,
    layer: int,
    pages: WindowPages | PlannedPages | KvpPages,
    weights: AttentionWeights,
    config: ModelConfig,
) -> Tensor:
    """Attend the w new tokens of each request over its stored tokens and them; store them.

    Args:
        x: [b, w, d], normed.
        kv: as in `prefill`.
        layer: index into dimension 1 of kv.
        pages: where the tokens of each request live; every new token is a query.
        weights: the layer.
        config: the shape.

    Returns:
        [b, w, d].
    """
    fused = weights.qkv(x)
    sizes = [config.query_size, 2 * config.key_value_size]
    q, new = torch.split(fused, sizes, dim=-1)
    planes = kv[:, layer]
    pages.write(planes, _stored(new, config))
    return project_out(attend_pages(q, planes, pages, config), weights)


def window_last(
    x: Tensor,
    last: Tensor,
    kv: Tensor,
    layer: int,
    pages: WindowPages | PlannedPages | KvpPages,
    weights: AttentionWeights,
    config: ModelConfig,
) -> Tensor:
    """As `window`, for the output of one token of each request only.

    Args:
        x: [b, w, d], normed; keys and values of all of it are stored.
        last: int64 [b], the token of each request whose output is wanted: the query of `pages`.
        kv: as in `prefill`.
        layer: index into dimension 1 of kv.
        pages: where the tokens of each request live; made with `counts`.
        weights: the layer.
        config: the shape.

    Returns:
        [b, d].
    """
    # Queries of the other tokens are computed and dropped: windows are short, calls are not.
    q, new = torch.split(weights.qkv(x), [config.query_size, 2 * config.key_value_size], dim=-1)
    planes = kv[:, layer]
    pages.write(planes, _stored(new, config))
    q = take(q, last).unsqueeze(1)
    return project_out(attend_pages(q, planes, pages, config).squeeze(1), weights)


def take(x: Tensor, index: Tensor) -> Tensor:
    """One row of each request: x [b, w, n] at index int64 [b]: [b, n]."""
    if x.shape[1] == 1:
        return x[:, 0]
    return x[torch.arange(len(x), device=x.device), index]


def _stored(new: Tensor, config: ModelConfig) -> Tensor:
    """Fused keys and values [b, w, ...] as pages store them: [b * w, 2, kv_heads, head_dim]."""
    heads = torch.unflatten(new, -1, (2, config.num_key_value_heads, config.head_dim))
    return heads.flatten(0, 1)
