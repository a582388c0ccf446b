"""Where the tokens of a request live in block-paged KV memory.

Exists so that index arithmetic happens once per step, not once per layer, and attention stays
free of it. Entry i of a block table is the block of tokens [i * block_size, (i+1) * block_size);
-1 pads a table and is never followed. A "plane" is one layer of the KV tensor:
[num_blocks, 2, kv_heads, block_size, head_dim].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PrefillPages:
    """One request: `context_tokens` stored before, `tokens` new ones after them.

    Attributes:
        blocks: int64 [t], block of each new token.
        offsets: int64 [t], its place in that block.
        table: int64 [blocks that hold stored and new tokens].
        context_tokens: tokens stored before this call.
        total_tokens: stored and new.
        visible: bool [t, total], True where a new token may look.
    """

    blocks: Tensor
    offsets: Tensor
    table: Tensor
    context_tokens: int
    total_tokens: int
    visible: Tensor

    @classmethod
    def of(
        cls, block_table: Tensor, block_size: int, context_tokens: int, tokens: int
    ) -> PrefillPages:
        """Plan for `tokens` new tokens after `context_tokens`; block_table is int64 [n]."""
        total = context_tokens + tokens
        device = block_table.device
        positions = torch.arange(context_tokens, total, device=device)
        keys = torch.arange(total if context_tokens else 0, device=device)
        return cls(
            blocks=block_table[positions // block_size],
            offsets=positions % block_size,
            table=block_table[: -(-total // block_size)],
            context_tokens=context_tokens,
            total_tokens=total,
            visible=keys <= positions[:, None],
        )

    def write(self, planes: Tensor, k: Tensor, v: Tensor) -> None:
        """Store k and v [t, kv_heads, head_dim]."""
        planes[self.blocks, 0, :, self.offsets] = k
        planes[self.blocks, 1, :, self.offsets] = v

    def read(self, planes: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values up to the last new token, each [total, kv_heads, head_dim]."""
        rows = planes[self.table].permute(1, 0, 3, 2, 4).flatten(1, 2)[:, : self.total_tokens]
        return rows[0], rows[1]


@dataclass(frozen=True, slots=True)
class DecodePages:
    """One new token for each of b requests.

    Attributes:
        blocks: int64 [b], block of each new token.
        offsets: int64 [b], its place in that block.
        tables: int64 [b, n], padding replaced by a block of the same request.
        valid: bool [b, n * block_size], True for stored tokens and the new one.
    """

    blocks: Tensor
    offsets: Tensor
    tables: Tensor
    valid: Tensor

    @classmethod
    def of(cls, block_tables: Tensor, block_size: int, context_lens: Tensor) -> DecodePages:
        """Plan for int64 block_tables [b, max_blocks] and tokens already stored [b]."""
        needed = int(context_lens.max()) // block_size + 1
        tables = block_tables[:, :needed]
        # Follow no foreign block, not even to mask it out: pad with the request's first one.
        tables = torch.where(tables >= 0, tables, tables[:, :1])
        rows = torch.arange(len(context_lens), device=tables.device)
        positions = torch.arange(needed * block_size, device=tables.device)
        return cls(
            blocks=tables[rows, context_lens // block_size],
            offsets=context_lens % block_size,
            tables=tables,
            valid=positions <= context_lens[:, None],
        )

    def write(self, planes: Tensor, k: Tensor, v: Tensor) -> None:
        """Store k and v [b, kv_heads, head_dim]."""
        planes[self.blocks, 0, :, self.offsets] = k
        planes[self.blocks, 1, :, self.offsets] = v

    def read(self, planes: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, each [b, kv_heads, n * block_size, head_dim].

        Places that hold no token of the request are zero: what an earlier owner left there may
        be infinite or not a number, and a weight of 0 would not cancel that.
        """
        rows = planes[self.tables].permute(2, 0, 3, 1, 4, 5).flatten(3, 4)
        rows = rows.masked_fill(~self.valid[None, :, None, :, None], 0)
        return rows[0], rows[1]
