"""One client's connection on the event loop: bytes to calls, and their answers back."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final, Protocol, TypeAlias, cast

import grpc

from workers.http2.calls import RESPONSE_BLOCK, Call, trailers
from workers.http2.connection import DataCame, HeadersCame, StreamReset, Writable
from workers.http2.frames import ErrorCode, Http2Error, header_block
from workers.http2.server_side import ServerConnection

_LOG = logging.getLogger(__name__)

Handler: TypeAlias = "grpc.RpcMethodHandler[object, object]"

SHUTTING_DOWN: Final = "the server is shutting down"
_MOST_STREAMS: Final = 32_768
# Answers to pings, settings and resets that a peer does not read; more, and it is no honest one.
_MOST_UNREAD_BYTES: Final = 4 << 20
# How long a peer may leave what it has asked for unread, and be connected without a word.
_READ_PATIENCE_S: Final = 300.0
_GREET_PATIENCE_S: Final = 20.0
_LINGER_S: Final = 2.0
_NOT_GRPC = header_block(((":status", "415"), ("content-type", "text/plain")))


class Serving(Protocol):
    """The server as its connections see it."""

    most_message_bytes: int
    most_waiting: int
    connections: set[ServerProtocol]
    stopping: bool

    def handler(self, path: str) -> Handler | None:
        """The method at a path."""

    def start_soon(self, call: Call) -> None:
        """Have a call begin in its turn."""


class ServerProtocol(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, server: Serving) -> None:
        self._server = server
        self._made_s = time.monotonic()
        self._http2 = ServerConnection(_MOST_STREAMS, self._made_s)
        self._calls: dict[int, Call] = {}
        self._blocked: set[int] = set()  # streams whose message is out but for the transport
        self._transport: asyncio.Transport | None = None
        self._flushing = False
        self._paused = False
        self._paused_s = 0.0
        self.peer = "unix:"

    @property
    def calls(self) -> list[Call]:
        return list(self._calls.values())

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class
        address = transport.get_extra_info("peername")
        if isinstance(address, tuple):
            kind = "ipv6" if ":" in address[0] else "ipv4"
            self.peer = f"{kind}:{address[0]}:{address[1]}"
        self._server.connections.add(self)
        self._flush()

    def data_received(self, data: bytes) -> None:
        try:
            for event in self._http2.receive(data, time.monotonic()):
                match event:
                    case HeadersCame():
                        self._begin(event)
                    case DataCame(stream_id, part, ended):
                        if (call := self._calls.get(stream_id)) is not None:
                            call.data(part, ended)
                    case StreamReset(stream_id):
                        if (call := self._calls.get(stream_id)) is not None:
                            call.gone()
                    case Writable(stream_id):
                        if (call := self._calls.get(stream_id)) is not None:
                            call.writable()
        except Http2Error as error:
            _LOG.warning("the connection of %s ends: %s (%s)", self.peer, error, error.code.name)
            self._http2.go_away(error.code, str(error))
            self.close()
            if self._transport is not None:
                # What it was told may never be read.
                asyncio.get_running_loop().call_later(_LINGER_S, self._transport.abort)
            return
        self._flush()
        transport = self._transport
        if transport is not None and transport.get_write_buffer_size() > _MOST_UNREAD_BYTES:
            transport.abort()

    def pause_writing(self) -> None:
        self._paused = True
        self._paused_s = time.monotonic()

    def resume_writing(self) -> None:
        self._paused = False
        blocked, self._blocked = self._blocked, set()
        for stream_id in blocked:
            if (call := self._calls.get(stream_id)) is not None:
                call.writable()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._server.connections.discard(self)
        for call in self.calls:
            call.gone()

    def look(self, now_s: float) -> None:
        """End what a peer does not read, or never began."""
        transport = self._transport
        if transport is None:
            return
        unread = self._paused and now_s - self._paused_s > _READ_PATIENCE_S
        if unread or (not self._http2.greeted and now_s - self._made_s > _GREET_PATIENCE_S):
            transport.abort()
            return
        for stream_id in self._http2.stalled(now_s - _READ_PATIENCE_S):
            self._http2.reset(stream_id, ErrorCode.CANCEL)
            if (call := self._calls.get(stream_id)) is not None:
                call.gone()
        self._flush()

    # What calls use.

    def send_headers(self, stream_id: int, block: bytes) -> None:
        self._http2.send_headers(stream_id, block)
        self._schedule()

    def send_message(self, stream_id: int, data: bytes) -> bool:
        sent = self._http2.send_data(stream_id, data)
        self._schedule()
        if sent and self._paused:
            self._blocked.add(stream_id)
            return False
        return sent

    def send_trailers(self, stream_id: int, block: bytes) -> None:
        self._http2.send_trailers(stream_id, block)
        self._schedule()

    def ready(self, call: Call) -> None:
        self._server.start_soon(call)

    def call_ended(self, stream_id: int) -> None:
        self._calls.pop(stream_id, None)

    def _schedule(self) -> None:
        """Write once for everything that is said in this turn of the loop."""
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        out = self._http2.out
        if out and self._transport is not None:
            self._http2.out = []
            self._transport.write(b"".join(out))

    def _begin(self, event: HeadersCame) -> None:
        headers = dict(event.headers)
        stream_id = event.stream_id
        if headers.get(":method") != "POST" or not headers.get("content-type", "").startswith(
            "application/grpc"
        ):
            self._http2.send_trailers(stream_id, _NOT_GRPC)
            return
        path = headers.get(":path", "")
        handler = self._server.handler(path)
        if handler is None or self._server.stopping:
            self._http2.send_headers(stream_id, RESPONSE_BLOCK)
            refusal = (
                trailers(grpc.StatusCode.UNAVAILABLE, SHUTTING_DOWN)
                if handler is not None
                else trailers(grpc.StatusCode.UNIMPLEMENTED, f"method {path} is not served")
            )
            self._http2.send_trailers(stream_id, refusal)
            return
        server = self._server
        call = Call(
            self, stream_id, handler, headers, server.most_message_bytes, server.most_waiting
        )
        self._calls[stream_id] = call
        if event.ended:
            call.data(b"", True)

    def go_away(self) -> None:
        """Have the client open no more streams here."""
        self._http2.go_away()
        self._flush()

    def close(self) -> None:
        """Close once what was said is written."""
        self._flush()
        if self._transport is not None:
            self._transport.close()
