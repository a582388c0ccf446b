"""Where a KVP rank keeps its share of the tokens of a request.

Exists beside `paging` because here positions and places differ: a request's tokens go round the KVP
ranks `interleave` at a time (`ParallelLayout`), every rank keeps its own in the same blocks, and a
query sees on each rank as many as that rank holds of the tokens up to it. A block holds
`block_size` tokens of every rank, so entry i of a block table is the block of global tokens
[i * block_size * kvp, (i + 1) * block_size * kvp).

All from global lengths, drafts included: what a rank holds of a draft that was rejected is beyond
its local length and is overwritten.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.kernels import dispatch
from workers.model.ranks import Ranks
from workers.parallel.layout import ParallelLayout


def local_tokens(tokens: Tensor, layout: ParallelLayout, kvp_rank: int) -> Tensor:
    """`ParallelLayout.local_tokens` of many lengths; int64, the shape of `tokens`."""
    turn = layout.kvp * layout.interleave
    rest = tokens % turn - kvp_rank * layout.interleave
    return tokens // turn * layout.interleave + rest.clamp(0, layout.interleave)


@dataclass(frozen=True, slots=True)
class Places:
    """Where new tokens go on one KVP rank.

    Attributes:
        blocks: int64 [n], block of each new token that this rank keeps.
        offsets: int64 [n], its place in that block.
        placed: int64 [n], which of the new tokens those are.
        opened: int64, blocks that hold nothing yet and are to be zeroed.
    """

    blocks: Tensor
    offsets: Tensor
    placed: Tensor
    opened: Tensor

    @classmethod
    def of(cls, tables: Tensor, block_size: int, positions: Tensor, ranks: Ranks) -> Places:
        """For tokens at global `positions` [b, t] of requests with block tables [b, n].

        Tokens beyond the blocks of their request have no place.
        """
        layout = ranks.layout
        share, turn = layout.interleave, layout.kvp * layout.interleave
        owned = positions // share % layout.kvp == layout.kvp_rank(ranks.rank)
        local = positions // turn * share + positions % share
        offsets = local % block_size
        numbers = local // block_size
        most = tables.shape[1]
        blocks = tables.gather(1, numbers.clamp(max=most - 1))
        blocks = blocks.masked_fill(numbers >= most, -1)
        # The first of a block's tokens on any rank opens it on all: a rank may be asked to read
        # a block of which it holds nothing yet.
        first = (positions % (block_size * layout.kvp) == 0) | (owned & (offsets == 0))
        placed = (owned & (blocks >= 0)).flatten().nonzero().squeeze(1)
        return cls(
            blocks=blocks.flatten()[placed],
            offsets=offsets.flatten()[placed],
            placed=placed,
            opened=blocks[first & (blocks >= 0)],
        )

    def open(self, *memories: Tensor) -> None:
        """Zero the blocks that the new tokens are the first of; before the first `write`."""
        if len(self.opened):
            for memory in memories:
                if memory.numel():
                    memory.index_fill_(0, self.opened, 0)

    def write(self, planes: Tensor, kv: Tensor) -> None:
        """Keep this rank's share of keys and values [b * t, 2, kv_heads, head_dim]."""
        planes.permute(0, 3, 1, 2, 4)[self.blocks, self.offsets] = kv[self.placed]


@dataclass(frozen=True, slots=True)
class Queries:
    """Requests of one part of a batch, and what their queries see on this rank.

    Attributes:
        rows: which requests of the batch.
        tables: int64 [b * blocks read]; where a request has fewer, its first block again.
        visible: int64 [b, q], how many of this rank's tokens each query sees; may be 0.
        bias: [b, q, keys] in the model dtype, 0 where a query may look and -inf elsewhere; None
            where kernels attend.
    """

    rows: slice
    tables: Tensor
    visible: Tensor
    bias: Tensor | None

    @classmethod
    def of(
        cls,
        rows: slice,
        tables: Tensor,
        block_size: int,
        queries: Tensor,
        ranks: Ranks,
        dtype: torch.dtype,
    ) -> Queries:
        """For queries at global positions [b, q], ascending, that see all up to themselves."""
        layout = ranks.layout
        visible = local_tokens(queries + 1, layout, layout.kvp_rank(ranks.rank))
        reach = min(max(-(-int(visible.max()) // block_size), 1), tables.shape[1])
        tables = tables[:, :reach]
        own = torch.arange(reach, device=tables.device) * block_size < visible[:, -1:]
        tables = torch.where(own & (tables >= 0), tables, tables[:, :1])
        if dispatch.suits(tables):
            return cls(rows, tables.flatten(), visible, None)
        keys = torch.arange(reach * block_size, device=tables.device)
        bias = torch.zeros((*visible.shape, len(keys)), dtype=dtype, device=tables.device)
        bias = bias.masked_fill_(keys >= visible.unsqueeze(-1), -torch.inf)
        return cls(rows, tables.flatten(), visible, bias)

    def read(self, planes: Tensor) -> Tensor:
        """Keys and values, [2, kv_heads, b, keys, head_dim]."""
        rows = planes.permute(1, 2, 0, 3, 4).index_select(2, self.tables)
        return rows.view(*rows.shape[:2], len(self.visible), -1, rows.shape[-1])


@dataclass(frozen=True, slots=True)
class KvpPages:
    """New tokens of a batch on one KVP rank, and the queries that look back from them.

    `parts` are attended one after the other, so that the exchange of one goes on during the
    attention of the next.
    """

    places: Places
    parts: tuple[Queries, ...]
    ranks: Ranks

    @classmethod
    def of(
        cls,
        block_tables: Tensor,
        block_size: int,
        context_lens: Tensor,
        width: int,
        ranks: Ranks,
        dtype: torch.dtype,
        counts: Tensor | None = None,
    ) -> KvpPages:
        """Plan for `width` tokens of each of b requests after `context_lens` [b] earlier ones.

        Args:
            block_tables: int64 [b, max_blocks], padded with -1.
            block_size: tokens of a block on one rank.
            context_lens: int64 [b], global.
            width: new tokens of each request.
            ranks: this rank among the others.
            dtype: of the model.
            counts: int64 [b]; when given, the one query of a request is its new token counts - 1;
                otherwise every new token is a query.
        """
        positions = context_lens[:, None] + torch.arange(width, device=context_lens.device)
        queries = positions if counts is None else (context_lens + counts - 1)[:, None]
        parts = tuple(
            Queries.of(rows, block_tables[rows], block_size, queries[rows], ranks, dtype)
            for rows in parts_of(len(block_tables), ranks.overlap_parts)
        )
        return cls(Places.of(block_tables, block_size, positions, ranks), parts, ranks)

    def open(self, *memories: Tensor) -> None:
        """See `Places.open`."""
        self.places.open(*memories)

    def write(self, planes: Tensor, kv: Tensor) -> None:
        """See `Places.write`."""
        self.places.write(planes, kv)


def parts_of(rows: int, parts: int) -> list[slice]:
    """`rows` as at most `parts` runs of almost equal length."""
    parts = min(parts, rows)
    bounds = [rows * index // parts for index in range(parts + 1)]
    return [slice(begin, end) for begin, end in itertools.pairwise(bounds)]
