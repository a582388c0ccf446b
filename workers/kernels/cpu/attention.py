"""Attention over keys and values in pages, for windows of several requests and for a prompt."""

from __future__ import annotations

import ctypes

from torch import Tensor

from workers.kernels.cpu.calls import function


class _Pages(ctypes.Structure):
    """`Pages` of attention.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("planes", "tables", "visible")),
        *(
            (name, ctypes.c_int64)
            for name in (
                "columns",
                "kv_heads",
                "block_tokens",
                "head_dim",
                "block",
                "plane",
                "head",
            )
        ),
    )


def attend(q: Tensor, planes: Tensor, tables: Tensor, visible: Tensor, heads: int) -> Tensor:
    """Softmax attention of queries over the stored tokens of their requests.

    Args:
        q: [b, queries, heads * head_dim]; the last dimension lies together.
        planes: one layer of the KV tensor, [blocks, 2, kv_heads, block_tokens, head_dim]; the
            tokens of a head lie together.
        tables: int64 [b, n], entry i is the block of tokens [i * block_tokens, ...).
        visible: int64 [b, queries], how many stored tokens each query sees, one at least.
        heads: query heads.

    Returns:
        [b, queries, heads * head_dim].
    """
    rows, queries, size = q.shape
    _, _, kv_heads, block_tokens, head_dim = planes.shape
    tables, visible = tables.contiguous(), visible.contiguous()
    out = q.new_empty(rows, queries, size)
    pages = _Pages(
        planes.data_ptr(),
        tables.data_ptr(),
        visible.data_ptr(),
        tables.shape[1],
        kv_heads,
        block_tokens,
        head_dim,
        *planes.stride()[:3],
    )
    function("attend_pages", q.dtype)(
        ctypes.byref(pages),
        rows,
        queries,
        heads,
        q.data_ptr(),
        q.stride(0),
        q.stride(1),
        out.data_ptr(),
    )
    return out
