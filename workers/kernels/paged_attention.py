"""Attention of a few new tokens of each request over its keys and values, where they lie in pages.

Exists because the tensor form first copies every page into one dense tensor: it reads the KV twice
and writes it once. Here a program takes one key head of one request, and all query heads and all
tokens of the window that use it, so each key and value is read once however many queries look at
it. Long requests are cut into splits of a fixed number of keys that run beside each other
(flash-decoding); a second kernel joins them by their log-sum-exps. The cuts depend on nothing but
the request itself, so its output does not change with what else is in the batch.

The log-sum-exp is part of the result because whoever holds other keys of the same request (another
KVP rank) can then join both exactly: O = sum exp(LSE_i - LSE) O_i, LSE = log sum exp(LSE_i).

Bytes moved: 2 s kv_heads head_dim e per request with s visible tokens and e bytes an element, the
queries and the result, and, beyond one split, a float32 partial result for each split, written and
read: 2 * 4 q heads (head_dim + 1) * splits, which is 2 q share / split_keys of the first term in
float32 and twice that in bfloat16 (q queries, share = heads / kv_heads).

b requests, q queries of each (1 to 8 in decoding). Softmax and sums are float32.
"""

# ruff: noqa: N803 - compile-time constants in capitals, as is usual in Triton

from __future__ import annotations

import math

import torch
import triton.language as tl
from torch import Tensor

from workers.kernels.language import blocks, kernel, power_of_two

# Keys of one split: fewer fill the GPU with fewer requests, more save partial results.
SPLIT_KEYS = 1024
_LOG2_E = math.log2(math.e)
_LEAST_TILE = 16  # of a matrix product on tensor cores


@kernel
def _attend(
    q: tl.tensor,
    planes: tl.tensor,
    tables: tl.tensor,
    visible: tl.tensor,
    out: tl.tensor,
    lse: tl.tensor,
    scale_log2: float,
    queries: int,
    table_blocks: int,
    q_request_stride: int,
    q_query_stride: int,
    block_stride: int,
    value_stride: int,
    head_stride: int,
    token_stride: int,
    SHARE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    SPLIT: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    DIMS: tl.constexpr,
    TILES: tl.constexpr,
) -> None:
    """One split of one key head of one request; rows are (query head of the key head, query)."""
    request = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1) // TILES
    split = tl.program_id(2)
    heads = (tl.num_programs(1) // TILES) * SHARE

    rows = (tl.program_id(1) % TILES) * ROWS + tl.arange(0, ROWS)
    used = rows < SHARE * queries
    head = kv_head * SHARE + rows // queries
    query = rows % queries
    dims = tl.arange(0, DIMS)
    inside = dims < HEAD_DIM

    seen = tl.load(visible + request * queries + query, mask=used, other=0).to(tl.int32)
    seen = tl.minimum(seen, table_blocks * BLOCK_TOKENS)
    start = split * SPLIT
    end = tl.minimum(start + SPLIT, tl.max(seen, axis=0))
    targets = ((split * tl.num_programs(0) + request) * queries + query) * heads + head

    q_at = request * q_request_stride + query * q_query_stride + head * HEAD_DIM
    wanted = used[:, None] & inside[None, :]
    scaled = tl.load(q + q_at[:, None] + dims[None, :], mask=wanted, other=0.0)

    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, DIMS], tl.float32)
    for first in range(start, end, KEYS):
        keys = first + tl.arange(0, KEYS)
        stored = keys < end
        numbers = tl.load(
            tables + request * table_blocks + keys // BLOCK_TOKENS, mask=stored, other=-1
        ).to(tl.int64)
        stored = stored & (numbers >= 0)
        places = numbers * block_stride + kv_head * head_stride
        places = places + (keys % BLOCK_TOKENS) * token_stride
        k = tl.load(
            planes + places[None, :] + dims[:, None],
            mask=stored[None, :] & inside[:, None],
            other=0.0,
        )
        scores = tl.dot(scaled, k, input_precision="ieee") * scale_log2
        scores = tl.where(stored[None, :] & (keys[None, :] < seen[:, None]), scores, float("-inf"))
        highest = tl.maximum(top, tl.max(scores, axis=1))
        # A row that sees nothing yet has no finite maximum to subtract.
        base = tl.where(highest == float("-inf"), 0.0, highest)
        shrink = tl.exp2(top - base)
        shares = tl.exp2(scores - base[:, None])
        v = tl.load(
            planes + value_stride + places[:, None] + dims[None, :],
            mask=stored[:, None] & inside[None, :],
            other=0.0,
        )
        total = total * shrink + tl.sum(shares, axis=1)
        mixed = mixed * shrink[:, None]
        mixed = tl.dot(shares.to(v.dtype), v, mixed, input_precision="ieee")
        top = highest

    some = total > 0
    safe = tl.where(some, total, 1.0)
    found = tl.where(some, (top + tl.log2(safe)) * 0.6931471805599453, float("-inf"))
    tl.store(lse + targets, found, mask=used)
    tl.store(
        out + targets[:, None] * HEAD_DIM + dims[None, :],
        (mixed / safe[:, None]).to(out.dtype.element_ty),
        mask=wanted,
    )


@kernel
def _combine(
    partial: tl.tensor,
    partial_lse: tl.tensor,
    out: tl.tensor,
    lse: tl.tensor,
    parts: int,
    HEAD_DIM: tl.constexpr,
    DIMS: tl.constexpr,
    PARTS: tl.constexpr,
) -> None:
    """One query head of one query: join its parts, PARTS at a time."""
    row = tl.program_id(0).to(tl.int64)
    rows = tl.num_programs(0)
    dims = tl.arange(0, DIMS)
    inside = dims < HEAD_DIM

    top = float("-inf")
    for first in range(0, parts, PARTS):
        numbers = first + tl.arange(0, PARTS)
        found = tl.load(
            partial_lse + numbers * rows + row, mask=numbers < parts, other=float("-inf")
        )
        top = tl.maximum(top, tl.max(found, axis=0))
    base = tl.where(top == float("-inf"), 0.0, top)

    mixed = tl.zeros([DIMS], tl.float32)
    total = 0.0
    for first in range(0, parts, PARTS):
        numbers = first + tl.arange(0, PARTS)
        found = tl.load(
            partial_lse + numbers * rows + row, mask=numbers < parts, other=float("-inf")
        )
        weights = tl.exp(found - base)
        places = (numbers * rows + row)[:, None] * HEAD_DIM + dims[None, :]
        # Parts of weight 0 are not read: they may never have been written.
        values = tl.load(partial + places, mask=(weights > 0)[:, None] & inside[None, :], other=0.0)
        mixed += tl.sum(weights[:, None] * values.to(tl.float32), axis=0)
        total += tl.sum(weights, axis=0)
    some = total > 0
    safe = tl.where(some, total, 1.0)
    tl.store(lse + row, tl.where(some, base + tl.log(safe), float("-inf")))
    result = (mixed / safe).to(out.dtype.element_ty)
    tl.store(out + row * HEAD_DIM + dims, result, mask=inside)


def attend(
    q: Tensor, planes: Tensor, tables: Tensor, visible: Tensor, *, split_keys: int = SPLIT_KEYS
) -> tuple[Tensor, Tensor]:
    """Softmax attention of queries over the stored tokens of their requests.

    Args:
        q: [b, q, heads, head_dim], float32 or bfloat16; the last two dimensions contiguous.
        planes: [num_blocks, 2, kv_heads, block_size, head_dim] in the dtype of q, any strides but
            for the last: one layer of the KV tensor as it lies.
        tables: int32 or int64 [b, blocks], contiguous. Entry i is the block of tokens
            [i * block_size, (i+1) * block_size); -1 is never followed.
        visible: int32 or int64 [b, q], how many stored tokens each query sees, from the first;
            for a window after c tokens c + 1 to c + q. More than the table holds is cut. A query
            that sees nothing gets zeros and a log-sum-exp of -inf.
        split_keys: keys of one split, a multiple of 64.

    Returns:
        The result [b, q, heads, head_dim] in the dtype of q, and the natural log-sum-exp of the
        scaled scores, float32 [b, q, heads].

    Raises:
        ValueError: shapes, types or strides do not fit together.
    """
    batch, queries, heads, head_dim = q.shape
    kv_heads = _check(q, planes, tables, visible, split_keys)
    block_tokens = planes.shape[3]
    splits = max(blocks(tables.shape[1] * block_tokens, split_keys), 1)
    out = torch.empty(batch, queries, heads, head_dim, dtype=q.dtype, device=q.device)
    lse = torch.empty(batch, queries, heads, dtype=torch.float32, device=q.device)
    if out.numel() == 0:
        return out, lse
    partial, partial_lse = out, lse
    if splits > 1:
        partial = torch.empty(splits, *out.shape, dtype=torch.float32, device=q.device)
        partial_lse = torch.empty(splits, *lse.shape, dtype=torch.float32, device=q.device)

    share = heads // kv_heads
    # Products in full float32 do not run on tensor cores and need their operands in registers.
    most = 128 if q.dtype == torch.bfloat16 else 16
    rows = min(max(power_of_two(share * queries), _LEAST_TILE), most)
    tiles = blocks(share * queries, rows)
    dims = max(power_of_two(head_dim), _LEAST_TILE)
    _attend[(batch, kv_heads * tiles, splits)](
        q,
        planes,
        tables,
        visible,
        partial,
        partial_lse,
        head_dim**-0.5 * _LOG2_E,
        queries,
        tables.shape[1],
        q.stride(0),
        q.stride(1),
        planes.stride(0),
        planes.stride(1),
        planes.stride(2),
        planes.stride(3),
        SHARE=share,
        HEAD_DIM=head_dim,
        BLOCK_TOKENS=block_tokens,
        SPLIT=split_keys,
        ROWS=rows,
        KEYS=64 if dims <= 128 and q.dtype == torch.bfloat16 else 32,
        DIMS=dims,
        TILES=tiles,
        num_warps=8 if rows * dims > 4096 or q.dtype == torch.float32 else 4,
        num_stages=2,
    )
    return (out, lse) if splits == 1 else combine(partial, partial_lse, q.dtype)


def combine(partial: Tensor, partial_lse: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Join results over disjoint sets of keys: of splits, or of KVP ranks.

    Args:
        partial: [parts, ..., head_dim], contiguous; not read where its log-sum-exp is -inf.
        partial_lse: float32 [parts, ...], contiguous.
        dtype: of the result.

    Returns:
        The result [..., head_dim] and its log-sum-exp, float32 [...].

    Raises:
        ValueError: shapes do not fit together.
    """
    if partial.shape[:-1] != partial_lse.shape or partial_lse.dtype != torch.float32:
        raise ValueError(
            f"partial {list(partial.shape)} needs float32 log-sum-exps of the same shape but the "
            f"last dimension, not {partial_lse.dtype} {list(partial_lse.shape)}"
        )
    if not (partial.is_contiguous() and partial_lse.is_contiguous()):
        raise ValueError("partial results and log-sum-exps must be contiguous")
    parts, *shape, head_dim = partial.shape
    out = torch.empty(*shape, head_dim, dtype=dtype, device=partial.device)
    lse = torch.empty(shape, dtype=torch.float32, device=partial.device)
    if out.numel():
        _combine[(lse.numel(),)](
            partial,
            partial_lse,
            out,
            lse,
            parts,
            HEAD_DIM=head_dim,
            DIMS=power_of_two(head_dim),
            PARTS=min(power_of_two(parts), 16),
            num_warps=2,
        )
    return out, lse


def bytes_moved(
    visible: Tensor, heads: int, kv_heads: int, head_dim: int, element: int, table_tokens: int
) -> int:
    """Bytes of one call with these `visible` [b, q], elements of `element` bytes, default splits.

    Args:
        visible: as in `attend`.
        heads: query heads.
        kv_heads: key heads.
        head_dim: of both.
        element: bytes of one.
        table_tokens: what the block tables reach, blocks * block_size.
    """
    keys = int(visible.amax(1).sum())
    results = visible.numel() * heads
    moved = 2 * keys * kv_heads * head_dim * element + 2 * results * head_dim * element
    if table_tokens > SPLIT_KEYS:
        # Each split of a request writes a log-sum-exp; those that see tokens, a result as well.
        used = int((-(-visible.amax(1) // SPLIT_KEYS)).sum()) * visible.shape[1] * heads
        moved += 2 * 4 * (used * head_dim + results * blocks(table_tokens, SPLIT_KEYS))
    return moved + 4 * results


def _check(q: Tensor, planes: Tensor, tables: Tensor, visible: Tensor, split_keys: int) -> int:
    """The number of key heads."""
    batch, queries, heads, head_dim = q.shape
    if q.dtype not in (torch.float32, torch.bfloat16) or planes.dtype != q.dtype:
        raise ValueError(
            f"q and planes must both be float32 or both bfloat16: {q.dtype}, {planes.dtype}"
        )
    if planes.ndim != 5 or planes.shape[1] != 2 or planes.shape[4] != head_dim:
        raise ValueError(
            f"planes must be [num_blocks, 2, kv_heads, block_size, {head_dim}], "
            f"not {list(planes.shape)}"
        )
    kv_heads = planes.shape[2]
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads cannot share {kv_heads} key heads evenly")
    if tables.ndim != 2 or len(tables) != batch or not tables.is_contiguous():
        raise ValueError(f"tables must be a contiguous [{batch}, blocks], not {list(tables.shape)}")
    if visible.shape != (batch, queries) or not visible.is_contiguous():
        raise ValueError(
            f"visible must be a contiguous [{batch}, {queries}], not {list(visible.shape)}"
        )
    if planes.stride(4) != 1 or q.stride(3) != 1 or (heads > 1 and q.stride(2) != head_dim):
        raise ValueError("the heads of q, and head_dim of planes, must be contiguous")
    if split_keys <= 0 or split_keys % 64:
        raise ValueError(f"split_keys must be a multiple of 64, not {split_keys}")
    return kv_heads
