"""Carries short messages about hand-offs: one TCP connection to each worker written to.

A stream and no datagrams, because a burst of hand-offs overruns the buffer of a socket, and each
one that is lost costs its request a whole lease.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

_LOG = logging.getLogger(__name__)
_LENGTH_BYTES = 4
_MOST_BYTES = 1 << 20


class _Receiver(asyncio.Protocol):
    """What another worker writes to this one."""

    def __init__(self, owner: Notifications) -> None:
        self._owner = owner
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's has no class of asyncio
        self._owner.receivers.add(self)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        while len(buffer) >= _LENGTH_BYTES:
            size = int.from_bytes(buffer[:_LENGTH_BYTES])
            if size > _MOST_BYTES:
                _LOG.warning("a notification of %d bytes: no worker of ours says that", size)
                self.close()
                return
            if len(buffer) < _LENGTH_BYTES + size:
                return
            notification = bytes(buffer[_LENGTH_BYTES : _LENGTH_BYTES + size])
            del buffer[: _LENGTH_BYTES + size]
            if self._owner.receive is not None:
                self._owner.receive(notification)

    def connection_lost(self, error: Exception | None) -> None:
        self._owner.receivers.discard(self)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class Notifications:
    """The hand-offs of one worker, both ways. Owned by the event loop that opened it."""

    def __init__(self) -> None:
        self.receive: Callable[[bytes], None] | None = None
        self.receivers: set[_Receiver] = set()
        self._listener: asyncio.AbstractServer | None = None
        self._outgoing: dict[str, asyncio.Queue[bytes]] = {}
        self._senders: set[asyncio.Task[None]] = set()
        self.address = ""

    @classmethod
    async def open(cls, host: str) -> Notifications:
        """Listen on any free port. Raises OSError."""
        notifications = cls()
        listener = await asyncio.get_running_loop().create_server(
            lambda: _Receiver(notifications), host, 0
        )
        notifications._listener = listener
        notifications.address = f"{host}:{listener.sockets[0].getsockname()[1]}"
        return notifications

    def send(self, address: str, notification: bytes) -> None:
        """Send to the worker at an address; what cannot be delivered is dropped, and its
        reservation there runs out."""
        queue = self._outgoing.get(address)
        if queue is None:
            queue = self._outgoing[address] = asyncio.Queue()
            sender = asyncio.create_task(self._send_all(address, queue))
            self._senders.add(sender)
            sender.add_done_callback(self._senders.discard)
        queue.put_nowait(len(notification).to_bytes(_LENGTH_BYTES) + notification)

    async def _send_all(self, address: str, queue: asyncio.Queue[bytes]) -> None:
        host, _, port = address.rpartition(":")
        writer: asyncio.StreamWriter | None = None
        try:
            _, writer = await asyncio.open_connection(host, int(port))
            while True:
                writer.write(await queue.get())
                await writer.drain()
        except OSError as error:
            _LOG.warning("hand-offs to %s are lost: %s", address, error)
        finally:
            # The next one tries again.
            self._outgoing.pop(address, None)
            if writer is not None:
                writer.close()

    async def close(self) -> None:
        """Close everything, both ways."""
        for sender in list(self._senders):
            sender.cancel()
        if self._senders:
            await asyncio.wait(self._senders)
        if self._listener is not None:
            self._listener.close()
        for receiver in list(self.receivers):
            receiver.close()
