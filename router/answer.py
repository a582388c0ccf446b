"""A request as its client's front end holds it: what comes next, and the right to leave."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from router.outbox import Outbox, OutboxReader
from router.requests import Delta, Finished
from router.router_metrics import RouterMetrics


class Answer:
    """One client's answer. Whoever has one calls `leave` at the end, whatever the end is."""

    def __init__(self, outbox: Outbox, metrics: RouterMetrics, left: Callable[[], None]) -> None:
        """`left` is called when the client leaves, once."""
        self._reader = OutboxReader(outbox)
        self._metrics = metrics
        self._left: Callable[[], None] | None = left

    async def next(self) -> Delta | Finished:
        """Everything that is new, as soon as something is; Finished comes last."""
        return await self._reader.next()

    async def pour(
        self, send: Callable[[Delta], bool], room: Callable[[], Awaitable[None]]
    ) -> Finished:
        """Give `send` everything as it comes; when it answers False, waits for `room` first."""

        def send_and_note(delta: Delta) -> bool:
            taken = send(delta)
            self.sent()
            return taken

        while (finished := await self._reader.pour(send_and_note)) is None:
            await room()
        return finished

    def sent(self) -> None:
        """What `next` gave last is on its way to the client: note how long that took."""
        if self._reader.since_s is not None:
            self._metrics.sent(self._reader.since_s)

    def leave(self) -> None:
        """The client wants no more, or has everything."""
        if self._left is not None:
            left, self._left = self._left, None
            left()
