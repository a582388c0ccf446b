"""Attention whose keys and values are spread over the ranks of a KVP group.

Exists as the one place of Helix's exchange (arXiv 2507.07120, section 2.1): every rank has all
queries of its TPA share, attends over its own tokens, and one all-to-all over the query heads gives
each rank every partial output of its part of the heads, log-sum-exps in the same message. Joined by
  O = sum_i exp(LSE_i - LSE) O_i,  LSE = log sum_i exp(LSE_i)
the result is that of one softmax over all tokens. The volume does not depend on how many tokens
there are.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from workers.kernels import dispatch
from workers.model.config import ModelConfig
from workers.model.kvp_paging import KvpPages, Queries


def attend(q: Tensor, planes: Tensor, pages: KvpPages, config: ModelConfig) -> Tensor:
    """Softmax attention of queries over the tokens that all KVP ranks hold of their requests.

    Args:
        q: [b, queries, heads * head_dim], the heads of this TPA rank.
        planes: one layer of this rank's KV tensor.
        pages: which tokens are here, and which of them each query sees.
        config: the shape of the rank.

    Returns:
        [b, queries, heads / kvp * head_dim]: part `kvp_rank` of the heads.
    """
    ranks, dtype = pages.ranks, q.dtype
    under_way = []
    for part in pages.parts:
        out, lse = attend_local(q[part.rows], planes, part, config)
        under_way.append(ranks.exchange(pack(out, lse, ranks.layout.kvp)))
    return torch.cat([combine(exchange.wait(), config.head_dim, dtype) for exchange in under_way])


def attend_local(
    q: Tensor, planes: Tensor, part: Queries, config: ModelConfig
) -> tuple[Tensor, Tensor]:
    """Attention over this rank's tokens alone.

    Args:
        q: [b, queries, heads * head_dim].
        planes: one layer of the KV tensor.
        part: what the queries see.
        config: the shape of the rank.

    Returns:
        [b, queries, heads, head_dim], and float32 [b, queries, heads] log-sum-exps (natural), -inf
        where a query sees nothing.
    """
    batch, queries, _ = q.shape
    heads, head_dim = config.num_attention_heads, config.head_dim
    if part.bias is None:
        out, lse = dispatch.attend_pages_lse(q, planes, part, config)
        return out.view(batch, queries, heads, head_dim), lse
    kv_heads = config.num_key_value_heads
    share = heads // kv_heads
    k, v = part.read(planes)  # [kv_heads, b, keys, head_dim]
    # Query heads that share a key head become further queries, so no key is copied for them.
    split = q.view(batch, queries, kv_heads, share, head_dim).permute(2, 0, 3, 1, 4)
    split = split.reshape(kv_heads, batch, share * queries, head_dim)
    bias = part.bias if queries == 1 else part.bias.repeat(1, share, 1)
    mixed, sums = _softmax(split, k, v, bias[None])
    mixed = mixed.view(kv_heads, batch, share, queries, head_dim).permute(1, 3, 0, 2, 4)
    sums = sums.view(kv_heads, batch, share, queries).permute(1, 3, 0, 2)
    nothing = (part.visible == 0)[..., None]
    lse = sums.flatten(2).float().masked_fill(nothing, -torch.inf)
    # Not a product with 0: where nothing is seen, what was read may not be a number.
    return mixed.flatten(2, 3).masked_fill(nothing[..., None], 0), lse


def _softmax(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Attention with log-sum-exps, [h, b, t, head_dim] and [h, b, t]; rows without keys are any."""
    if q.is_cpu:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, False, attn_mask=bias
        )
        return out, lse
    scores = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5 + bias
    lse = torch.logsumexp(scores, dim=-1)
    return functional.softmax(scores, dim=-1).to(v.dtype) @ v, lse


def pack(out: Tensor, lse: Tensor, kvp: int) -> Tensor:
    """One message with partial outputs and log-sum-exps, cut by query heads.

    Args:
        out: [b, queries, heads, head_dim].
        lse: float32 [b, queries, heads].
        kvp: ranks that it goes to.

    Returns:
        [kvp, b, queries, heads / kvp, head_dim + 4 / itemsize] in the dtype of `out`, contiguous:
        a log-sum-exp keeps its four bytes.
    """
    sums = lse.contiguous().unsqueeze(-1).view(out.dtype)
    message = torch.cat([out, sums], dim=-1)
    return torch.unflatten(message, 2, (kvp, -1)).permute(2, 0, 1, 3, 4).contiguous()


def combine(received: Tensor, head_dim: int, dtype: torch.dtype) -> Tensor:
    """Join the partial outputs of all KVP ranks.

    Args:
        received: [kvp, b, queries, heads, head_dim + 4 / itemsize], one `pack`ed part from each.
        head_dim: of the outputs.
        dtype: of the result; sums are float32.

    Returns:
        [b, queries, heads * head_dim].
    """
    out = received[..., :head_dim].float()
    lse = received[..., head_dim:].contiguous().view(torch.float32)
    top = lse.amax(dim=0)
    # A query that no rank can serve has no finite maximum to subtract.
    top = top.masked_fill(top == -torch.inf, 0)
    shares = torch.exp(lse - top)
    total = shares.sum(dim=0).clamp(min=torch.finfo(torch.float32).tiny)
    return ((shares * out).sum(dim=0) / total).flatten(-2).to(dtype)
