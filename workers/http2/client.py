"""One bidirectional gRPC call on a connection of its own, on the event loop: a worker's session.

In grpc.aio each message goes through gRPC's poller thread and back, which costs the router more
than what it does with the message.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Callable
from typing import cast
from urllib.parse import unquote

from workers.http2.client_side import ClientConnection
from workers.http2.connection import DataCame, HeadersCame, StreamReset, WentAway, Writable
from workers.http2.frames import ErrorCode, Http2Error, header_block

_PREFIX = struct.Struct(">BI")
_STATUS_NAMES = {
    1: "CANCELLED",
    2: "UNKNOWN",
    9: "FAILED_PRECONDITION",
    12: "UNIMPLEMENTED",
    13: "INTERNAL",
    14: "UNAVAILABLE",
}


class CallEnded(Exception):
    """The call is over; the message says why, for people."""


class BidiCall(asyncio.Protocol):
    """Sends and receives messages as bytes until one side ends it.

    `progress_s` is when the peer took something last, on the monotonic clock, or when there was
    nothing for it to take.
    """

    def __init__(self, path: str, authority: str, on_message: Callable[[bytes], None]) -> None:
        """`path` is that of the method; `on_message` is called with each message, in order; what
        it raises ends the call."""
        self._http2 = ClientConnection()
        self._on_message = on_message
        self._body = bytearray()
        self._transport: asyncio.Transport | None = None
        self._flushing = False
        self._paused = False
        self._reading = True
        self._unsent = 0
        self._went_away = ""
        self.progress_s = time.monotonic()
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stream_id = self._http2.open(
            header_block(
                (
                    (":method", "POST"),
                    (":scheme", "http"),
                    (":path", path),
                    (":authority", authority),
                    ("te", "trailers"),
                    ("content-type", "application/grpc"),
                    ("user-agent", "tandem-router"),
                )
            )
        )

    async def wait_ended(self) -> None:
        """Wait for the end and raise what it was: CallEnded, or what `on_message` raised."""
        # A waiter that is cancelled must not take the future along.
        await asyncio.shield(self._ended)

    @property
    def backlog(self) -> int:
        """How many messages have been given since the peer was last known to read."""
        return self._unsent

    def send(self, message: bytes) -> None:
        """Send one message; what the peer does not take yet is kept."""
        if self._ended.done():
            return
        sent = self._http2.send_data(self._stream_id, _PREFIX.pack(0, len(message)) + message)
        if sent and not self._paused:
            self._unsent = 0
        else:
            if self._unsent == 0:
                self.progress_s = time.monotonic()
            self._unsent += 1
        self._schedule()

    def read(self, more: bool) -> None:
        """Whether more is to be read now; what is not, the peer keeps."""
        transport = self._transport
        if transport is None or transport.is_closing() or more is self._reading:
            return
        self._reading = more
        if more:
            transport.resume_reading()
        else:
            transport.pause_reading()

    def end(self, reason: Exception) -> None:
        """Break the call off, if it has not ended; `wait_ended` raises the reason."""
        if not self._ended.done():
            self._ended.set_exception(reason)
            # Whoever waits may have gone already.
            self._ended.exception()
        self._http2.reset(self._stream_id, ErrorCode.CANCEL)
        self._flush()
        if self._transport is not None:
            if self._paused:
                self._transport.abort()
            else:
                self._transport.close()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class
        self._flush()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        detail = self._went_away or (str(error) if error else "it closed its connection")
        self.end(CallEnded(detail))

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._progressed()

    def data_received(self, data: bytes) -> None:
        try:
            for event in self._http2.receive(data, time.monotonic()):
                match event:
                    case DataCame():
                        self._take(event.data)
                        if event.ended:
                            raise CallEnded("it closed its session")
                    case HeadersCame():
                        self._take_headers(event)
                    case Writable():
                        self._progressed()
                    case StreamReset():
                        raise CallEnded("it broke its session off")
                    case WentAway(detail):
                        self._went_away = detail
        except Exception as error:  # noqa: BLE001 - whoever waits for the end gets it
            self.end(CallEnded(str(error)) if isinstance(error, Http2Error) else error)
            return
        self._schedule()

    def _take(self, data: bytes) -> None:
        body = self._body
        if not body and len(data) >= _PREFIX.size:
            compressed, size = _PREFIX.unpack_from(data)
            if len(data) == _PREFIX.size + size and not compressed:  # nearly always
                self._on_message(data[_PREFIX.size :])
                return
        body += data
        at = 0
        while len(body) - at >= _PREFIX.size:
            compressed, size = _PREFIX.unpack_from(body, at)
            if compressed:
                raise CallEnded("it compressed a message, which nobody asked for")
            end = at + _PREFIX.size + size
            if len(body) < end:
                break
            self._on_message(bytes(body[at + _PREFIX.size : end]))
            at = end
        del body[:at]

    def _take_headers(self, event: HeadersCame) -> None:
        headers = dict(event.headers)
        status = headers.get("grpc-status")
        if status is not None:
            name = _STATUS_NAMES.get(int(status) if status.isdecimal() else 2, status)
            if status == "0":
                raise CallEnded("it closed its session")
            raise CallEnded(
                f"its session broke ({name}: {unquote(headers.get('grpc-message', ''))})"
            )
        if headers.get(":status") != "200" or event.ended:
            raise CallEnded(f"it answered with HTTP status {headers.get(':status')}")

    def _progressed(self) -> None:
        self.progress_s = time.monotonic()
        if not self._paused and not self._http2.waiting(self._stream_id):
            self._unsent = 0

    def _schedule(self) -> None:
        """Write once for everything that is said in this turn of the loop."""
        if self._http2.out and not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        out = self._http2.out
        if out and self._transport is not None:
            self._http2.out = []
            self._transport.write(b"".join(out))
