"""Ranks as threads of one process that meet at a barrier: collectives without a network."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from workers.model.ranks import Exchange
from workers.parallel.layout import ParallelLayout

Result = TypeVar("Result")
_PATIENCE_S = 20.0


@dataclass
class _Meeting:
    """Where the ranks of one layout put down tensors and take up each other's."""

    size: int
    parts: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.parts = [torch.empty(0)] * self.size
        self.barrier = threading.Barrier(self.size)


@dataclass
class _Done:
    received: Tensor

    def wait(self) -> Tensor:
        return self.received


@dataclass
class ThreadRank:
    """One rank; see `workers.model.ranks.Ranks`."""

    rank: int
    layout: ParallelLayout
    meeting: _Meeting
    ranks_per_group: int = 1
    overlap_parts: int = 1

    def _all(self, part: Tensor) -> list[Tensor]:
        self.meeting.parts[self.rank] = part
        self.meeting.barrier.wait(_PATIENCE_S)
        parts = [each.clone() for each in self.meeting.parts]
        self.meeting.barrier.wait(_PATIENCE_S)
        return parts

    def sum(self, partial: Tensor) -> Tensor:
        return torch.stack(self._all(partial)).sum(dim=0)

    def sum_over_group(self, partial: Tensor) -> Tensor:
        first = self.rank // self.ranks_per_group * self.ranks_per_group
        return torch.stack(self._all(partial)[first : first + self.ranks_per_group]).sum(dim=0)

    def exchange(self, message: Tensor) -> Exchange:
        first = self.layout.tpa_rank(self.rank) * self.layout.kvp
        mine = self.layout.kvp_rank(self.rank)
        group = self._all(message)[first : first + self.layout.kvp]
        return _Done(torch.stack([each[mine] for each in group]))

    def gather(self, part: Tensor) -> Tensor:
        parts = torch.stack(self._all(part))
        return parts if self.rank == 0 else part

    def gather_everywhere(self, part: Tensor) -> Tensor:
        return torch.stack(self._all(part))


def on_every_rank(
    layout: ParallelLayout, work: Callable[[ThreadRank], Result], *, ranks_per_group: int = 1
) -> list[Result]:
    """What `work` gives on each rank, all of them at once."""
    meeting = _Meeting(layout.size)
    ranks = [
        ThreadRank(rank, layout, meeting, ranks_per_group=ranks_per_group)
        for rank in range(layout.size)
    ]
    with ThreadPoolExecutor(layout.size) as threads:
        return list(threads.map(work, ranks))
