"""Collectives of one rank with the others of its group, over torch.distributed.

Exists as the only module that knows process groups: gloo on CPU, NCCL on CUDA. They are made
directly and not through torch's global state, so that one process may hold ranks of several
groups. What was sent, and how long this rank had to wait for it, is counted in `Traffic`.

A group is the unit of failure: when a rank is lost, collectives of the others fail (gloo notices a
closed connection at once) or run into the timeout, and raise `RanksLost`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol, cast

import torch
from torch import Tensor
from torch._C import _distributed_c10d as c10d

from workers.parallel.errors import RanksLost
from workers.parallel.layout import ParallelLayout
from workers.parallel.traffic import Collective, Traffic

_LOOPBACK = "127.0.0.1"
# Up to so many bytes every rank sends its tensor to every other and adds up what it gets: one hop
# instead of the 2 (n - 1) of a ring. Of four ranks on two cores that takes a half to a fifth of the
# time for 1 to 40 KB, and the same for 256 KB. NCCL chooses by itself.
_DIRECT_BYTES = 65536


class _Group(Protocol):
    """What a process group of either backend can do; torch's stubs leave it out."""

    def size(self) -> int: ...

    def allreduce(self, tensors: list[Tensor]) -> c10d.Work: ...

    def allgather(self, outputs: list[list[Tensor]], inputs: list[Tensor]) -> c10d.Work: ...

    def gather(
        self, outputs: list[list[Tensor]], inputs: list[Tensor], options: c10d.GatherOptions
    ) -> c10d.Work: ...

    def alltoall_base(
        self,
        output: Tensor,
        message: Tensor,
        output_sizes: list[int],
        message_sizes: list[int],
        options: c10d.AllToAllOptions,
    ) -> c10d.Work: ...


class Communicator:
    """One rank's view of its group; implements `workers.model.ranks.Ranks`."""

    def __init__(
        self,
        store: c10d.Store,
        rank: int,
        layout: ParallelLayout,
        *,
        ranks_per_group: int,
        overlap_parts: int = 1,
        device: torch.device,
        timeout_s: float,
        clock_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Meet the other ranks; blocks until all are there.

        Args:
            store: where ranks find each other; the same for all of them.
            rank: which one this is.
            layout: of the group.
            ranks_per_group: how many ranks share a Mamba group.
            overlap_parts: see `Ranks`.
            device: of the tensors.
            timeout_s: how long a collective may take before the group counts as lost.
            clock_s: for `Traffic`.

        Raises:
            RanksLost: another rank did not come in time.
        """
        self.rank = rank
        self.layout = layout
        self.ranks_per_group = ranks_per_group
        self.overlap_parts = overlap_parts
        self.traffic = Traffic()
        self._clock_s = clock_s
        make = _Maker(store, rank, device, timedelta(seconds=timeout_s))
        with _lost_when_failing("meeting the other ranks"):
            self._all = make.group("all", range(layout.size))
            first = layout.tpa_rank(rank) * layout.kvp
            self._kvp = make.group(f"kvp{first}", range(first, first + layout.kvp))
            first = rank // ranks_per_group * ranks_per_group
            self._mamba = make.group(f"mamba{first}", range(first, first + ranks_per_group))

    def sum(self, partial: Tensor) -> Tensor:
        """See `Ranks.sum`."""
        return self._sum(self._all, partial, Collective.SUM)

    def sum_over_group(self, partial: Tensor) -> Tensor:
        """See `Ranks.sum_over_group`."""
        return self._sum(self._mamba, partial, Collective.NORM_SUM)

    def exchange(self, message: Tensor) -> _Exchange:
        """See `Ranks.exchange`; `message` must be contiguous."""
        received = torch.empty_like(message)
        group = self._group(self._kvp)
        sent = message.nbytes // group.size() * (group.size() - 1)
        self.traffic.add_sent(Collective.EXCHANGE, sent)
        with _lost_when_failing("the all-to-all of a KVP group"):
            work = group.alltoall_base(received, message, [], [], c10d.AllToAllOptions())
        return _Exchange(self, work, received, message)

    def gather(self, part: Tensor) -> Tensor:
        """See `Ranks.gather`."""
        part, size = part.contiguous(), self._all_ranks.size()
        options = c10d.GatherOptions()
        options.rootRank = 0
        parts = part.new_empty((size, *part.shape)) if self.rank == 0 else None
        if self.rank:
            self.traffic.add_sent(Collective.GATHER, part.nbytes)
        with self._waiting(Collective.GATHER), _lost_when_failing("gathering scores"):
            outputs = [] if parts is None else [list(parts.unbind())]
            self._all_ranks.gather(outputs, [part], options).wait()
        return part if parts is None else parts

    def gather_everywhere(self, part: Tensor) -> Tensor:
        """See `Ranks.gather_everywhere`."""
        part, size = part.contiguous(), self._all_ranks.size()
        parts = part.new_empty((size, *part.shape))
        self.traffic.add_sent(Collective.GATHER, part.nbytes * (size - 1))
        with self._waiting(Collective.GATHER), _lost_when_failing("gathering the best words"):
            self._all_ranks.allgather([list(parts.unbind())], [part]).wait()
        return parts

    def close(self) -> None:
        """Let go of all connections; other ranks that still wait for this one fail."""
        self._all = self._kvp = self._mamba = None

    @property
    def _all_ranks(self) -> _Group:
        return self._group(self._all)

    def _group(self, group: _Group | None) -> _Group:
        if group is None:
            raise RanksLost(f"rank {self.rank}: its group is closed")
        return group

    def _sum(self, group: _Group | None, partial: Tensor, kind: Collective) -> Tensor:
        group = self._group(group)
        size = group.size()
        direct = partial.is_cpu and partial.nbytes <= _DIRECT_BYTES
        # A ring sends each part of the tensor twice but for the last hop.
        sent = partial.nbytes if direct else 2 * partial.nbytes // size
        self.traffic.add_sent(kind, sent * (size - 1))
        with self._waiting(kind), _lost_when_failing("adding up partial sums"):
            if not direct:
                group.allreduce([partial]).wait()
                return partial
            message = partial.expand(size, *partial.shape).contiguous()
            received = torch.empty_like(message)
            group.alltoall_base(received, message, [], [], c10d.AllToAllOptions()).wait()
        # In the order of the ranks on all of them, so that all go on from the same numbers.
        return torch.sum(received, dim=0, out=partial)

    @contextmanager
    def _waiting(self, kind: Collective) -> Iterator[None]:
        began_s = self._clock_s()
        yield
        self.traffic.add_wait(kind, self._clock_s() - began_s)


@dataclass(frozen=True, slots=True)
class _Exchange:
    """Implements `workers.model.ranks.Exchange`."""

    communicator: Communicator
    work: c10d.Work
    received: Tensor
    message: Tensor  # kept alive until it is sent

    def wait(self) -> Tensor:
        """The message received, by sender."""
        with (
            self.communicator._waiting(Collective.EXCHANGE),
            _lost_when_failing("the all-to-all of a KVP group"),
        ):
            self.work.wait()
        return self.received


@dataclass(frozen=True, slots=True)
class _Maker:
    """Makes process groups among some of the ranks; None for a group of one."""

    store: c10d.Store
    rank: int
    device: torch.device
    timeout: timedelta

    def group(self, name: str, members: range) -> _Group | None:
        if len(members) == 1:
            return None
        store = c10d.PrefixStore(name, self.store)
        index, size = members.index(self.rank), len(members)
        if self.device.type == "cuda":
            nccl = c10d.ProcessGroupNCCL.Options()
            nccl._timeout = self.timeout
            return cast(_Group, c10d.ProcessGroupNCCL(store, index, size, nccl))
        gloo = c10d.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        gloo._timeout = self.timeout
        gloo._devices = [c10d.ProcessGroupGloo.create_device(hostname=_LOOPBACK)]
        return cast(_Group, c10d.ProcessGroupGloo(store, index, size, gloo))


@contextmanager
def _lost_when_failing(what: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RanksLost(f"{what} failed: a rank was lost or hangs: {error}") from error
