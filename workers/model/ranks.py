"""What the maths asks of the other ranks when a layer is cut over several.

Exists so that the model knows nothing of processes or networks: weights that are a part of a layer
carry one of these, whole ones carry none and pay nothing. `workers.parallel.communicator` is the
implementation over torch.distributed.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from workers.parallel.layout import ParallelLayout


class Exchange(Protocol):
    """An all-to-all that is under way."""

    def wait(self) -> Tensor:
        """The message received, [kvp, ...] by sender."""


class Ranks(Protocol):
    """The ranks that share a model, seen from one of them. All call the same, in the same order."""

    @property
    def rank(self) -> int:
        """Which one this is."""

    @property
    def layout(self) -> ParallelLayout:
        """How the model is cut over them."""

    @property
    def ranks_per_group(self) -> int:
        """How many ranks share the heads of one Mamba group; 1 where no group is cut."""

    @property
    def overlap_parts(self) -> int:
        """Parts of a batch whose attention and exchange overlap (HOP-B); 1 for none."""

    def sum(self, partial: Tensor) -> Tensor:
        """Add up the tensors of all ranks, in place."""

    def sum_over_group(self, partial: Tensor) -> Tensor:
        """Add up, in place, the tensors of the ranks that share a Mamba group."""

    def exchange(self, message: Tensor) -> Exchange:
        """Send message[i] to KVP rank i of this rank's KVP group, and get as much from each."""

    def gather(self, part: Tensor) -> Tensor:
        """The tensors of all ranks, of one shape, as [ranks, ...] on rank 0; elsewhere `part`."""

    def gather_everywhere(self, part: Tensor) -> Tensor:
        """As `gather`, on every rank."""
