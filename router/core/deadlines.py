"""When requests run out of time and leases must be renewed: heaps that forget what has ended."""

from __future__ import annotations

import heapq

from router.core.request import Attempt, Request

# Ended requests are swept out when they could be most of the heap.
_SWEEP_ABOVE = 64


class Deadlines:
    """Moments at which something is up for live requests, earliest first."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Request]] = []
        self._added = 0
        self._sweep_at = _SWEEP_ABOVE

    def add(self, request: Request, at_s: float | None) -> None:
        """Watch a request, if there is such a moment for it."""
        if at_s is None:
            return
        self._added += 1  # equal moments stay in order
        heapq.heappush(self._heap, (at_s, self._added, request))
        if len(self._heap) > self._sweep_at:
            self._heap = [entry for entry in self._heap if entry[2].live]
            heapq.heapify(self._heap)
            self._sweep_at = max(_SWEEP_ABOVE, 2 * len(self._heap))

    @property
    def next_s(self) -> float | None:
        """The earliest moment of a live request."""
        while self._heap and not self._heap[0][2].live:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def expired(self, now_s: float) -> list[Request]:
        """Take out the live requests whose time is up."""
        out = []
        while (next_s := self.next_s) is not None and next_s <= now_s:
            out.append(heapq.heappop(self._heap)[2])
        return out


class Silences:
    """Attempts whose workers must say something in time, the next one first.

    Progress only moves `due_s` of the attempt, which costs nothing; the heap follows when the
    moment comes that it knows of.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Attempt]] = []
        self._sweep_at = _SWEEP_ABOVE

    def watch(self, attempt: Attempt, due_s: float) -> None:
        """Wait for an attempt until then, instead of a later moment."""
        attempt.due_s = due_s
        heapq.heappush(self._heap, (due_s, attempt.handle, attempt))
        if len(self._heap) > self._sweep_at:
            self._heap = [entry for entry in self._heap if entry[2].awaited]
            heapq.heapify(self._heap)
            self._sweep_at = max(_SWEEP_ABOVE, 2 * len(self._heap))

    @property
    def next_s(self) -> float | None:
        """When to look again."""
        while self._heap and not self._heap[0][2].awaited:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def over(self, now_s: float) -> list[Attempt]:
        """Take out the attempts whose workers have said nothing for too long."""
        out: list[Attempt] = []
        while (next_s := self.next_s) is not None and next_s <= now_s:
            attempt = heapq.heappop(self._heap)[2]
            if attempt.due_s > now_s:
                heapq.heappush(self._heap, (attempt.due_s, attempt.handle, attempt))
            elif attempt not in out:
                out.append(attempt)
        return out


class Renewals:
    """Leases of reservations that must be renewed, the next one first."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Attempt, float]] = []

    def add(self, attempt: Attempt, lease_s: float, now_s: float) -> None:
        """Renew a lease when a third of it is over; 0 is for ever."""
        if lease_s > 0.0:
            heapq.heappush(self._heap, (now_s + lease_s / 3.0, attempt.handle, attempt, lease_s))

    @property
    def next_s(self) -> float | None:
        """When the next lease must be renewed."""
        while self._heap and not _is_leased(self._heap[0][2]):
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def due(self, now_s: float) -> list[Attempt]:
        """Attempts whose leases must be renewed now; they come again a third of a lease later."""
        out = []
        while (next_s := self.next_s) is not None and next_s <= now_s:
            _, _, attempt, lease_s = heapq.heappop(self._heap)
            out.append(attempt)
            self.add(attempt, lease_s, now_s)
        return out


def _is_leased(attempt: Attempt) -> bool:
    """Whether decode still waits for the state of an attempt that somebody wants."""
    wanted = attempt.counts or attempt.incoming
    return wanted and not attempt.state_arrived and not attempt.decode.closed
