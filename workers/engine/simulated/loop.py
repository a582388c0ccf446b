"""Runs a simulated engine on the event loop, with a timer for its clock.

No thread, because its steps compute nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future

from workers.engine.commands import Command
from workers.engine.events import StepEvents
from workers.engine.simulated.engine import SimulatedEngine
from workers.handoff.notifications import Notifications

_LOG = logging.getLogger(__name__)


class SimulatedLoop:
    """Steps a simulated engine whenever it is due. Owned by the event loop that starts it."""

    def __init__(
        self,
        engine: SimulatedEngine,
        notifications: Notifications,
        emit: Callable[[StepEvents], object],
    ) -> None:
        """`emit` is called with the events of every step that had some."""
        self._engine = engine
        self._notifications = notifications
        notifications.receive = self._arrived
        self._emit = emit
        self._timer: asyncio.Handle | None = None
        self.failed: Future[BaseException] = Future()

    @property
    def failure(self) -> BaseException | None:
        return self.failed.result() if self.failed.done() else None

    def start(self) -> None:
        self._wake()

    def post(self, command: Command) -> None:
        self._engine.handle(command)
        self._wake()

    def _arrived(self, notification: bytes) -> None:
        self._engine.arrived(notification)
        self._wake()

    async def aclose(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        await self._notifications.close()
        self._engine.close()

    def _wake(self) -> None:
        """Have the engine looked at when it is due, which a command may have brought forward."""
        if self.failed.done():
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        idle_s = self._engine.idle_s
        loop = asyncio.get_running_loop()
        if idle_s == 0.0:
            self._timer = loop.call_soon(self._step)
        elif idle_s is not None:
            self._timer = loop.call_later(idle_s, self._step)

    def _step(self) -> None:
        self._timer = None
        try:
            events = self._engine.step()
            if events:
                self._emit(events)
        except BaseException as error:  # noqa: BLE001 - whatever it was, the worker is lost
            _LOG.exception("the simulated engine failed")
            self.failed.set_result(error)
            return
        self._wake()
