"""Where the new tokens of windows live in block-paged KV, planned and stored in single calls."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.kernels.cpu.calls import function


@dataclass(frozen=True, slots=True)
class PlannedPages:
    """As `workers.model.paging.WindowPages`, for attention that needs no bias.

    Attributes:
        blocks: int64 [b * w], block of each new token, -1 where it has no place.
        offsets: int64 [b * w], its place in that block.
        tables: int64 [b, blocks read].
        visible: int64 [b, q], how many stored tokens each query sees.
    """

    blocks: Tensor
    offsets: Tensor
    tables: Tensor
    visible: Tensor

    @classmethod
    def of(
        cls,
        block_tables: Tensor,
        block_size: int,
        context_lens: Tensor,
        width: int,
        counts: Tensor | None,
    ) -> PlannedPages:
        """Plan for windows of `width` tokens; arguments as those of `WindowPages.of`."""
        rows, most = block_tables.shape
        queries = width if counts is None else 1
        columns = min(most, (int(context_lens.max()) + width - 1) // block_size + 1)
        sizes = [rows * width, rows * width, rows * columns, rows * queries]
        numbers = torch.empty(sum(sizes), dtype=torch.int64)
        blocks, offsets, tables, visible = torch.split(numbers, sizes)
        function("plan_pages", torch.float32)(
            block_tables.contiguous().data_ptr(),
            rows,
            most,
            columns,
            block_size,
            context_lens.contiguous().data_ptr(),
            width,
            None if counts is None else counts.contiguous().data_ptr(),
            *(part.data_ptr() for part in (blocks, offsets, tables, visible)),
        )
        return cls(blocks, offsets, tables.view(rows, columns), visible.view(rows, queries))

    def open(self, *memories: Tensor) -> None:
        """Zero the blocks that the new tokens are the first of; before the first `write`."""
        for memory in memories:
            if memory.numel():
                function("open_pages", torch.float32)(
                    len(self.blocks),
                    self.blocks.data_ptr(),
                    self.offsets.data_ptr(),
                    memory.data_ptr(),
                    memory.stride(0) * memory.itemsize,
                )

    def write(self, planes: Tensor, kv: Tensor) -> None:
        """Store keys and values [b * w, 2, kv_heads, head_dim], each token's side by side."""
        _, _, kv_heads, _, head_dim = planes.shape
        size = kv.itemsize
        function("write_pages", torch.float32)(
            len(self.blocks),
            kv_heads,
            head_dim * size,
            self.blocks.data_ptr(),
            self.offsets.data_ptr(),
            kv.data_ptr(),
            kv.stride(0) * size,
            planes.data_ptr(),
            *(step * size for step in planes.stride()[:3]),
        )
