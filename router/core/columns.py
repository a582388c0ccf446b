"""Workers of one role as columns of numbers, so that the few worth a closer look are found fast.

With hundreds of workers, looking at each in Python would take longer than everything else about a
request. Rows are given out again, the lowest first, so equal workers are told apart the same way
in every run.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from router.core.worker_view import WorkerView


class Columns:
    """One row for each worker; rows of nobody can take nothing."""

    ANY: Final = 1 << 62  # a size that nothing is too large for

    def __init__(self) -> None:
        self._views: list[WorkerView | None] = []
        self._free: list[int] = []
        self._count = 0
        # Of each row: the largest request that it takes now, when idle, and at all; see `write`.
        self._room: list[int] = []
        self._ever: list[int] = []
        self._size: list[int] = []
        self._most_ever: int | None = None  # None: to be found anew
        self._cost: NDArray[np.float64] = np.empty(0)  # load, of rows that take something
        self._per_token_s: NDArray[np.float64] = np.empty(0)

    def __len__(self) -> int:
        return self._count

    def add(self, view: WorkerView) -> int:
        """A row for a worker."""
        self._count += 1
        if self._free:
            row = heapq.heappop(self._free)
            self._views[row] = view
            return row
        row = len(self._views)
        self._views.append(view)
        for column in (self._room, self._ever, self._size):
            column.append(-1)
        if row == len(self._cost):
            more = np.full(max(8, row), np.inf)
            self._cost = np.concatenate([self._cost, more])
            self._per_token_s = np.concatenate([self._per_token_s, more])
        return row

    def remove(self, row: int) -> None:
        """The row's worker has gone."""
        self._count -= 1
        self.write(row, -1, -1, -1, np.inf, np.inf)
        self._views[row] = None
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
        if self._ever[row] != ever:
            self._ever[row] = ever
            self._most_ever = None
        self._size[row] = size
        self._cost[row] = load if room >= 0 else np.inf
        self._per_token_s[row] = per_token_s

    def any_ever(self, tokens: int) -> bool:
        """Whether anyone who can be counted on would take so many tokens when idle."""
        if self._most_ever is None:
            self._most_ever = max(self._ever, default=-1)
        return self._most_ever >= tokens

    def any_size(self, tokens: int) -> bool:
        """Whether anyone at all is as large."""
        return max(self._size, default=-1) >= tokens

    def least_loaded(self, tokens: int, most: int) -> list[WorkerView]:
        """Of those that take so many tokens now, the least loaded; at most `most`."""
        return self._best(self._cost, tokens, most)

    def soonest_read(self, tokens: int, most: int) -> list[WorkerView]:
        """Of those that take so many tokens now, who would have read them first."""
        return self._best(self._cost + self._per_token_s * tokens, tokens, most)

    def _best(self, cost: NDArray[np.float64], tokens: int, most: int) -> list[WorkerView]:
        room = self._room
        if len(room) > most:
            rows = cost.argpartition(most)[:most].tolist()
            views = []
            for row in rows:
                view = self._views[row] if row < len(room) else None
                if view is None or room[row] < tokens:
                    break
                views.append(view)
            else:
                return views
        # Some of the best have too little memory left, or there are few: look at all.
        rows = [row for row, free in enumerate(room) if free >= tokens]
        costs = cost.tolist()
        rows = heapq.nsmallest(most, rows, key=costs.__getitem__)
        return [view for row in rows if (view := self._views[row]) is not None]
