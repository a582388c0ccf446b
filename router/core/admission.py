"""The one queue of the router: bounded, strictest class first, then in order of arrival."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from router.core.request import Request


class AdmissionQueue:
    """Requests that wait for a pair of workers."""

    def __init__(self, limit: int) -> None:
        """At most `limit` requests wait; those that come back do not count against newcomers."""
        self._limit = limit
        # Not plain dicts: finding the first of those slows down with every one taken.
        self._classes: dict[int, OrderedDict[str, Request]] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Request]:
        for rank in sorted(self._classes):
            yield from self._classes[rank].values()

    @property
    def full(self) -> bool:
        return self._length >= self._limit

    def head(self) -> Request | None:
        """Whose turn it is."""
        return next(iter(self), None)

    def push(self, request: Request) -> None:
        """Add a request behind those of its class."""
        self._classes.setdefault(request.class_rank, OrderedDict())[request.request_id] = request
        self._length += 1

    def push_front(self, request: Request) -> None:
        """Give a request back the turn that it already had."""
        self.push(request)
        self._classes[request.class_rank].move_to_end(request.request_id, last=False)

    def discard(self, request: Request) -> None:
        """Take a request out, from wherever it stands; nothing happens if it does not wait."""
        waiting = self._classes.get(request.class_rank)
        if waiting is None or waiting.pop(request.request_id, None) is None:
            return
        if not waiting:
            del self._classes[request.class_rank]
        self._length -= 1
