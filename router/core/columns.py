"""Workers of one role as columns of numbers, so that the few worth a closer look are found fast.

With hundreds of workers, looking at each in Python would take longer than everything else about a
request. Rows are given out again, the lowest first, so equal workers are told apart the same way
in every run.
"""

from __future__ import annotations

import heapq
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

_Number = TypeVar("_Number", np.int64, np.float64)


class Columns:
    """One row for each worker; rows of nobody can take nothing."""

    ANY: Final = 1 << 62  # a size that nothing is too large for

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._free: list[int] = []
        self._count = 0
        self._room: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._ever: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._size: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._load: NDArray[np.float64] = np.empty(0)
        self._per_token_s: NDArray[np.float64] = np.empty(0)

    def __len__(self) -> int:
        return self._count

    def add(self, worker_id: str) -> int:
        """A row for a worker."""
        self._count += 1
        if self._free:
            row = heapq.heappop(self._free)
            self._ids[row] = worker_id
            return row
        row = len(self._ids)
        self._ids.append(worker_id)
        if row == len(self._room):
            size = max(8, 2 * row)
            self._room = _grown(self._room, size)
            self._ever = _grown(self._ever, size)
            self._size = _grown(self._size, size)
            self._load = _grown(self._load, size)
            self._per_token_s = _grown(self._per_token_s, size)
            for empty in range(row, size):
                self.write(empty, -1, -1, -1, np.inf, np.inf)
        return row

    def remove(self, row: int) -> None:
        """The row's worker has gone."""
        self._count -= 1
        self._ids[row] = ""
        self.write(row, -1, -1, -1, np.inf, np.inf)
        heapq.heappush(self._free, row)

    def write(
        self, row: int, room: int, ever: int, size: int, load: float, per_token_s: float
    ) -> None:
        """What is known of a worker.

        Args:
            row: from `add`.
            room: the largest request that it takes now, in tokens; -1: it takes none.
            ever: the largest that it will take when it is idle; -1: it is not to be counted on.
            size: as `ever`, of a worker that can be counted on.
            load: the less the better: seconds of waiting prompts, or share of slots in use.
            per_token_s: how long it reads a token.
        """
        self._room[row] = room
        self._ever[row] = ever
        self._size[row] = size
        self._load[row] = load
        self._per_token_s[row] = per_token_s

    def any_ever(self, tokens: int) -> bool:
        """Whether anyone who can be counted on would take so many tokens when idle."""
        return bool((self._ever >= tokens).any())

    def any_size(self, tokens: int) -> bool:
        """Whether anyone at all is as large."""
        return bool((self._size >= tokens).any())

    def least_loaded(self, tokens: int, most: int) -> list[str]:
        """Of those that take so many tokens now, the least loaded; up to about `most`."""
        return self._best(self._load, tokens, most)

    def soonest_read(self, tokens: int, most: int) -> list[str]:
        """Of those that take so many tokens now, who would have read them first."""
        return self._best(self._load + self._per_token_s * tokens, tokens, most)

    def _best(self, cost: NDArray[np.float64], tokens: int, most: int) -> list[str]:
        able = np.flatnonzero(self._room >= tokens)
        if len(able) > most:
            costs = cost[able]
            # Stable, so that of equal ones those of the lowest rows are taken.
            able = able[np.argpartition(costs, most)[:most]]
        return [self._ids[row] for row in able.tolist()]


def _grown(column: NDArray[_Number], size: int) -> NDArray[_Number]:
    grown = np.empty(size, dtype=column.dtype)
    grown[: len(column)] = column
    return grown
