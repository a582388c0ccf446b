"""Virtual time: what happens when, in order.

Times that are equal keep the order in which they were entered, so a run is the same every time.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable


class Agenda:
    """The clock of a simulation and what is still to come."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._heap: list[tuple[float, int, Callable[[int], None], int]] = []
        self._entered = 0

    def at(self, time_s: float, action: Callable[[int], None], version: int = 0) -> None:
        """Call `action(version)` at a time.

        Nothing is ever taken out: whoever changes its plans raises its version and ignores calls
        with an older one.
        """
        self._entered += 1
        heapq.heappush(self._heap, (time_s, self._entered, action, version))

    @property
    def next_s(self) -> float | None:
        """When something happens next."""
        return self._heap[0][0] if self._heap else None

    def advance(self) -> bool:
        """Go to the next entry and do it; False when there is none."""
        return self.advance_before(math.inf)

    def advance_before(self, time_s: float) -> bool:
        """Go to the next entry and do it; False when there is none earlier than `time_s`."""
        heap = self._heap
        if not heap or heap[0][0] >= time_s:
            return False
        self.now_s, _, action, version = heapq.heappop(heap)
        action(version)
        return True
