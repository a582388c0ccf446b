"""Runs a simulated engine on the event loop: its clock is a timer, its hand-offs are datagrams.

No thread, because its steps compute nothing; a datagram, because a hand-off between two processes
has to cross from one to the other, and a lost one must cost no more than a lease.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future

from workers.engine.commands import Command
from workers.engine.events import StepEvents
from workers.engine.simulated.engine import SimulatedEngine

_LOG = logging.getLogger(__name__)


class Notifications(asyncio.DatagramProtocol):
    """One UDP socket for the hand-offs of one worker, both ways."""

    def __init__(self) -> None:
        self._transport: asyncio.DatagramTransport | None = None
        self.receive: Callable[[bytes], None] | None = None

    @classmethod
    async def open(cls, host: str) -> Notifications:
        """A socket on any free port. Raises OSError."""
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.create_datagram_endpoint(cls, local_addr=(host, 0))
        protocol._transport = transport
        return protocol

    @property
    def address(self) -> str:
        """host:port."""
        assert self._transport is not None
        host, port = self._transport.get_extra_info("sockname")[:2]
        return f"{host}:{port}"

    def send(self, address: str, notification: bytes) -> None:
        assert self._transport is not None
        host, _, port = address.rpartition(":")
        self._transport.sendto(notification, (host, int(port)))

    def datagram_received(self, data: bytes, addr: object) -> None:
        if self.receive is not None:
            self.receive(data)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


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
        self._notifications.close()
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
