"""One rank without the others, for maths that only needs to know which one it is."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from workers.model.ranks import Exchange
from workers.parallel.layout import ParallelLayout


@dataclass(frozen=True)
class LoneRank:
    """Knows its place; any collective is a mistake."""

    rank: int
    layout: ParallelLayout
    ranks_per_group: int = 1
    overlap_parts: int = 1

    def sum(self, partial: Tensor) -> Tensor:
        raise AssertionError("no other ranks here")

    def sum_over_group(self, partial: Tensor) -> Tensor:
        raise AssertionError("no other ranks here")

    def exchange(self, message: Tensor) -> Exchange:
        raise AssertionError("no other ranks here")

    def gather(self, part: Tensor) -> Tensor:
        raise AssertionError("no other ranks here")

    def gather_everywhere(self, part: Tensor) -> Tensor:
        raise AssertionError("no other ranks here")
