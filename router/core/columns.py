"""Workers of one role as columns of numbers, so that the few worth a closer look are found fast.

With hundreds of workers, looking at each in Python would take longer than everything else about a
request. Rows are given out again, the lowest first, so equal workers are told apart the same way
in every run.
"""

from __future__ import annotations

import heapq
import math
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
        # Of each row: the largest request that it takes when idle, and at all; see `limit`.
        self._ever: list[int] = []
        self._size: list[int] = []
        self._most_ever: int | None = None  # None: to be found anew
        self._room: NDArray[np.int64] = np.empty(0, np.int64)
        self._cost: NDArray[np.float64] = np.empty(0)  # load, of rows that take something
        self._per_token_s: NDArray[np.float64] = np.empty(0)
        self._scratch: NDArray[np.float64] = np.empty(0)

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
        self._ever.append(-1)
        self._size.append(-1)
        if row == len(self._cost):
            more = max(8, row // 2)
            self._room = np.concatenate([self._room, np.full(more, -1)])
            self._cost = np.concatenate([self._cost, np.full(more, np.inf)])
            self._per_token_s = np.concatenate([self._per_token_s, np.full(more, np.inf)])
            self._scratch = np.empty_like(self._cost)
        return row

    def remove(self, row: int) -> None:
        """The row's worker has gone."""
        self._count -= 1
        self.write(row, -1, np.inf)
        self.limit(row, -1, -1, np.inf)
        self._views[row] = None
        heapq.heappush(self._free, row)

    def write(self, row: int, room: int, load: float) -> None:
        """What a worker takes now.

        Args:
            row: from `add`.
            room: the largest request, in tokens; -1: it takes none.
            load: the less the better: seconds of waiting prompts, or share of slots in use.
        """
        self._room[row] = room
        self._cost[row] = load if room >= 0 else np.inf

    def limit(self, row: int, ever: int, size: int, per_token_s: float) -> None:
        """What is known of a worker whatever it has to do.

        Args:
            row: from `add`.
            ever: the largest request that it will take when idle; -1: it is not to be counted on.
            size: as `ever`, of a worker that can be counted on.
            per_token_s: how long it reads a token.
        """
        if self._ever[row] != ever:
            self._ever[row] = ever
            self._most_ever = None
        self._size[row] = size
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
        """Of those that take so many tokens now, the least loaded, in this order; at most `most`.

        Equal ones are in the order of their rows, here and in `soonest_read`.
        """
        return self._take_best(self._cost, tokens, most)

    def soonest_read(self, tokens: int, most: int) -> list[WorkerView]:
        """Of those that take so many tokens now, who would have read them first."""
        np.multiply(self._per_token_s, tokens, out=self._scratch)
        np.add(self._scratch, self._cost, out=self._scratch)
        return self._take_best(self._scratch, tokens, most)

    def _take_best(self, cost: NDArray[np.float64], tokens: int, most: int) -> list[WorkerView]:
        """Those that take so many tokens and have the least cost.

        Looking for the least a few times is several times quicker than any kind of sorting. Rows
        that were seen are crossed out meanwhile; for those that are too small, in a copy.
        """
        room, views = self._room, self._views
        found: list[WorkerView] = []
        if not self._count:
            return found
        crossed: list[tuple[int, float]] = []
        whole, all_fit = cost, False
        while len(found) < most:
            row = int(cost.argmin())
            least: float = cost.item(row)
            view = views[row] if least < math.inf else None
            if view is None:
                break
            if all_fit or room.item(row) >= tokens:
                found.append(view)
                if len(found) < most:
                    cost[row] = math.inf
                    crossed.append((row, least))
            else:
                cost = cost.copy()
                cost[room < tokens] = math.inf
                all_fit = True
        for row, least in crossed:
            whole[row] = least
        return found
