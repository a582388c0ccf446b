"""When requests run out of time: a heap that forgets those that ended earlier."""

from __future__ import annotations

import heapq

from router.core.request import Request

# Ended requests are swept out when they could be most of the heap.
_SWEEP_ABOVE = 64


class Deadlines:
    """Deadlines of live requests, earliest first."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Request]] = []
        self._added = 0
        self._sweep_at = _SWEEP_ABOVE

    def add(self, request: Request) -> None:
        """Watch a request, if it has a deadline."""
        if request.deadline_s is None:
            return
        self._added += 1  # equal deadlines stay in order of arrival
        heapq.heappush(self._heap, (request.deadline_s, self._added, request))
        if len(self._heap) > self._sweep_at:
            self._heap = [entry for entry in self._heap if entry[2].live]
            heapq.heapify(self._heap)
            self._sweep_at = max(_SWEEP_ABOVE, 2 * len(self._heap))

    @property
    def next_s(self) -> float | None:
        """The earliest deadline of a live request."""
        while self._heap and not self._heap[0][2].live:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def expired(self, now_s: float) -> list[Request]:
        """Take out the live requests whose time is up."""
        out = []
        while (next_s := self.next_s) is not None and next_s <= now_s:
            out.append(heapq.heappop(self._heap)[2])
        return out
