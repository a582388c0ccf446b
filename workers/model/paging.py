"""Where the tokens of a request live in block-paged KV memory.

Exists so that index arithmetic happens once per step, not once per layer, and attention stays
free of it. Entry i of a block table is the block of tokens [i * block_size, (i+1) * block_size);
-1 pads a table and is never followed. A "plane" is one layer of the KV tensor:
[num_blocks, 2, kv_heads, block_size, head_dim].

Blocks are zeroed when their first token is written: what an earlier owner left there may be
infinite or not a number, and a weight of 0 would not cancel that. The backbone's tokens open the
draft KV of a block too, so positions that were never drafted from read as zeros.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.kernels import dispatch
from workers.kernels.cpu import calls
from workers.kernels.cpu.pages import PlannedPages


def _zero(blocks: Tensor, memories: Iterable[Tensor]) -> None:
    if len(blocks):
        for memory in memories:
            if memory.numel():
                memory.index_fill_(0, blocks, 0)


@dataclass(frozen=True, slots=True)
class PrefillPages:
    """One request: `context_tokens` stored before, `tokens` new ones after them.

    Attributes:
        blocks: int64 [t], block of each new token.
        offsets: int64 [t], its place in that block.
        opened: int64 [n], blocks whose first token is among the new ones.
        table: int64 [blocks that hold stored and new tokens].
        context_tokens: tokens stored before this call.
        total_tokens: stored and new.
        seen: int64 [t], how many tokens each new one may look at, itself included.
    """

    blocks: Tensor
    offsets: Tensor
    opened: Tensor
    table: Tensor
    context_tokens: int
    total_tokens: int
    seen: Tensor

    @classmethod
    def of(
        cls, block_table: Tensor, block_size: int, context_tokens: int, tokens: int
    ) -> PrefillPages:
        """Plan for `tokens` new tokens after `context_tokens`; block_table is int64 [n]."""
        total = context_tokens + tokens
        device = block_table.device
        positions = torch.arange(context_tokens, total, device=device)
        table = block_table[: -(-total // block_size)]
        return cls(
            blocks=block_table[positions // block_size],
            offsets=positions % block_size,
            opened=table[-(-context_tokens // block_size) :],
            table=table,
            context_tokens=context_tokens,
            total_tokens=total,
            seen=positions + 1,
        )

    @property
    def visible(self) -> Tensor:
        """bool [t, total], True where a new token may look."""
        keys = torch.arange(self.total_tokens, device=self.seen.device)
        return keys < self.seen[:, None]

    def open(self, *memories: Tensor) -> None:
        """Zero the blocks that the new tokens are the first of; before the first `write`."""
        _zero(self.opened, memories)

    def write(self, planes: Tensor, kv: Tensor) -> None:
        """Store keys and values [t, 2, kv_heads, head_dim]."""
        planes.permute(0, 3, 1, 2, 4)[self.blocks, self.offsets] = kv

    def read(self, planes: Tensor) -> Tensor:
        """Keys and values up to the last new token, [2, kv_heads, total, head_dim]."""
        rows = planes.permute(1, 2, 0, 3, 4).index_select(2, self.table)
        return rows.flatten(2, 3)[:, :, : self.total_tokens]


@dataclass(frozen=True, slots=True)
class WindowPages:
    """A window of w new tokens for each of b requests, and q queries of each that look back.

    Attributes:
        blocks: int64 [n], block of each new token that has a place.
        offsets: int64 [n], its place in that block.
        placed: int64 [n], which of the b * w new tokens those are; None when all are. The tail
            of a window may reach beyond the blocks of its request; it is not stored.
        opened: int64, blocks whose first token is among the new ones.
        tables: int64 [b * blocks read]; where a request has fewer, its first block again.
        visible: int64 [b, q], how many stored tokens each query sees.
        bias: [1, b, share * q or 1, keys] in the model dtype, 0 where a query may look and -inf
            elsewhere; with several queries, for each of the `share` query heads of a key head.
            None where kernels attend: they need `visible` only.
    """

    blocks: Tensor
    offsets: Tensor
    placed: Tensor | None
    opened: Tensor
    tables: Tensor
    visible: Tensor
    bias: Tensor | None

    @classmethod
    def of(
        cls,
        block_tables: Tensor,
        block_size: int,
        context_lens: Tensor,
        width: int,
        *,
        share: int,
        dtype: torch.dtype,
        counts: Tensor | None = None,
    ) -> WindowPages | PlannedPages:
        """Plan for windows of `width` tokens after `context_lens` [b] stored ones.

        Args:
            block_tables: int64 [b, max_blocks].
            block_size: tokens of a block.
            context_lens: int64 [b].
            width: w.
            share: query heads for each key head.
            dtype: of the model.
            counts: int64 [b]; when given, the one query of a request is its new token counts - 1;
                otherwise every new token is a query.
        """
        if calls.replaces(dtype, block_tables):
            return PlannedPages.of(block_tables, block_size, context_lens, width, counts)
        device = block_tables.device
        positions = context_lens[:, None] + torch.arange(width, device=device)
        queries = positions if counts is None else (context_lens + counts - 1)[:, None]
        furthest, most = int(queries.max()), block_tables.shape[1] - 1

        numbers = positions // block_size
        if int(context_lens.max()) + width > (most + 1) * block_size:
            beyond = block_tables.new_full((len(block_tables), -(-width // block_size)), -1)
            blocks = torch.cat([block_tables, beyond], dim=1).gather(1, numbers).flatten()
        else:
            blocks = block_tables.gather(1, numbers).flatten()
        offsets = (positions % block_size).flatten()
        placed = None
        if int(blocks.min()) < 0:
            placed = (blocks >= 0).nonzero().squeeze(1)
            blocks, offsets = blocks[placed], offsets[placed]

        # Follow no block that is foreign or not yet written, not even to mask it out.
        tables = block_tables[:, : furthest // block_size + 1]
        own = torch.arange(tables.shape[1], device=device) <= queries[:, -1:] // block_size
        tables = torch.where(own & (tables >= 0), tables, tables[:, :1])
        opened = blocks[offsets == 0]
        plan = (blocks, offsets, placed, opened, tables.flatten(), queries + 1)
        if dispatch.suits(tables):
            return cls(*plan, None)
        keys = torch.arange(tables.shape[1] * block_size, device=device)
        hidden = keys > queries[..., None]
        bias = torch.zeros(hidden.shape, dtype=dtype, device=device)
        bias = bias.masked_fill_(hidden, -torch.inf)
        if queries.shape[1] > 1:
            bias = bias.repeat(1, share, 1)  # of one query, all heads see the same
        return cls(*plan, bias[None])

    def open(self, *memories: Tensor) -> None:
        """Zero the blocks that the new tokens are the first of; before the first `write`."""
        _zero(self.opened, memories)

    def write(self, planes: Tensor, kv: Tensor) -> None:
        """Store keys and values [b * w, 2, kv_heads, head_dim]."""
        if self.placed is not None:
            kv = kv[self.placed]
        planes.permute(0, 3, 1, 2, 4)[self.blocks, self.offsets] = kv

    def read(self, planes: Tensor) -> Tensor:
        """Keys and values, [2, kv_heads, b, keys, head_dim]."""
        rows = planes.permute(1, 2, 0, 3, 4).index_select(2, self.tables)
        return rows.view(*rows.shape[:2], len(self.visible), -1, rows.shape[-1])
