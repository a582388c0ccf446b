"""Virtual time: what happens when, in order.

Times that are equal keep the order in which they were entered, so a run is the same every time.

Time is cut into short spans. Only what happens in the span that runs is kept in order; what comes
later lies in a list for each span, which is sorted when its turn comes. One heap of everything
would be gone through from top to bottom for each entry, most of it not in the processor's cache
once thousands of workers have entries in it.
"""

from __future__ import annotations

import bisect
import heapq
import math
from collections.abc import Callable
from typing import TypeAlias

_Entry: TypeAlias = tuple[float, int, Callable[[int], None], int]


class Agenda:
    """The clock of a simulation and what is still to come."""

    def __init__(self, span_s: float = 1.0) -> None:
        """`span_s` changes nothing but the cost: best are some dozens of entries in a span."""
        self.now_s = 0.0
        self._span_s = span_s
        self._entered = 0
        # Of the span that runs, those from `_place` on are still to come.
        self._entries: list[_Entry] = []
        self._place = 0
        self._span = 0
        self._later: dict[int, list[_Entry]] = {}
        self._spans: list[int] = []  # a heap of those that have entries

    def at(self, time_s: float, action: Callable[[int], None], version: int = 0) -> None:
        """Call `action(version)` at a time.

        Nothing is ever taken out: whoever changes its plans raises its version and ignores calls
        with an older one.
        """
        self._entered += 1
        entry = (time_s, self._entered, action, version)
        span = int(time_s / self._span_s)
        if span <= self._span:
            bisect.insort(self._entries, entry, self._place)
            return
        entries = self._later.get(span)
        if entries is None:
            self._later[span] = [entry]
            heapq.heappush(self._spans, span)
        else:
            entries.append(entry)

    @property
    def next_s(self) -> float | None:
        """When something happens next."""
        return self._entries[self._place][0] if self._find() else None

    def advance(self) -> bool:
        """Go to the next entry and do it; False when there is none."""
        return self.advance_before(math.inf)

    def advance_before(self, time_s: float) -> bool:
        """Go to the next entry and do it; False when there is none earlier than `time_s`."""
        if not self._find():
            return False
        at_s, _, action, version = self._entries[self._place]
        if at_s >= time_s:
            return False
        self._place += 1
        self.now_s = at_s
        action(version)
        return True

    def _find(self) -> bool:
        """Whether there is a next entry, which is then in the span that runs."""
        while self._place == len(self._entries):
            if not self._spans:
                return False
            self._span = heapq.heappop(self._spans)
            self._entries, self._place = self._later.pop(self._span), 0
            self._entries.sort()
        return True
