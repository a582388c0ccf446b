"""Serves gRPC methods at addresses: connections of the event loop, calls on their streams."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TypeAlias, cast

import grpc

from router.http2.calls import RESPONSE_BLOCK, Call, trailers
from router.http2.connection import DataCame, HeadersCame, StreamReset, Writable
from router.http2.frames import ErrorCode, Http2Error, header_block
from router.http2.server_side import ServerConnection

_LOG = logging.getLogger(__name__)

Handler: TypeAlias = "grpc.RpcMethodHandler[object, object]"

_MOST_STREAMS = 32_768
# Answers to pings, settings and resets that a peer does not read; more, and it is no honest one.
_MOST_UNREAD_BYTES = 4 << 20
# How long a peer may leave what it has asked for unread, and be connected without a word.
_READ_PATIENCE_S = 300.0
_GREET_PATIENCE_S = 20.0
_LOOK_S = 10.0
_LINGER_S = 2.0
# Tokens of calls that run must not wait until a burst of new ones is through, nor these for ever:
# so many begin in a turn of the loop, or one for each so much time that the last turn took. One
# takes some 0.3 ms, so that is half of the loop's time.
_STARTS_AT_ONCE = 4
_START_EVERY_S = 0.0006
_SHUTTING_DOWN = "the server is shutting down"
_NOT_GRPC = header_block(((":status", "415"), ("content-type", "text/plain")))


class _Connection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, server: Http2Server) -> None:
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
                trailers(grpc.StatusCode.UNAVAILABLE, _SHUTTING_DOWN)
                if handler is not None
                else trailers(grpc.StatusCode.UNIMPLEMENTED, f"method {path} is not served")
            )
            self._http2.send_trailers(stream_id, refusal)
            return
        call = Call(self, stream_id, handler, headers, self._server.most_message_bytes)
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


class Http2Server:
    """A gRPC server; servicers are added by the generated `add_..._to_server` functions."""

    def __init__(self, most_message_bytes: int) -> None:
        self.most_message_bytes = most_message_bytes
        self.connections: set[_Connection] = set()
        self.stopping = False
        self._methods: dict[str, Handler] = {}
        self._listeners: list[asyncio.AbstractServer] = []
        self._looking: asyncio.TimerHandle | None = None
        self._to_start: deque[Call] = deque()
        self._starting: asyncio.Handle | None = None
        self._started_s = 0.0  # when some began last

    def add_generic_rpc_handlers(self, handlers: Sequence[object]) -> None:
        """For the generated code, which names every method by the other call as well."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        """The methods of one service."""
        for name, handler in handlers.items():
            self._methods[f"/{service}/{name}"] = handler

    def handler(self, path: str) -> Handler | None:
        """The method at a path."""
        return self._methods.get(path)

    def start_soon(self, call: Call) -> None:
        """Have a call begin in its turn."""
        self._to_start.append(call)
        if self._starting is None:
            self._started_s = time.monotonic()
            self._starting = asyncio.get_running_loop().call_soon(self._start_some)

    def _start_some(self) -> None:
        self._starting = None
        now_s = time.monotonic()
        most = max(_STARTS_AT_ONCE, int((now_s - self._started_s) / _START_EVERY_S))
        self._started_s = now_s
        for _ in range(min(most, len(self._to_start))):
            self._to_start.popleft().run()
        if self._to_start:
            self._starting = asyncio.get_running_loop().call_soon(self._start_some)

    async def listen(
        self, host: str, port: int, tls: ssl.SSLContext | None = None, reuse_port: bool = False
    ) -> int:
        """Serve at an address; returns the port. Raises OSError."""
        if tls is not None:
            tls.set_alpn_protocols(["h2"])
        listener = await asyncio.get_running_loop().create_server(
            lambda: _Connection(self), host, port, ssl=tls, reuse_port=reuse_port or None
        )
        self._listeners.append(listener)
        if self._looking is None:
            self._look()
        bound: int = listener.sockets[0].getsockname()[1]
        return bound

    async def listen_unix(self, path: str) -> None:
        """Serve at a Unix socket. Raises OSError."""
        listener = await asyncio.get_running_loop().create_unix_server(
            lambda: _Connection(self), path
        )
        self._listeners.append(listener)

    def _look(self) -> None:
        now_s = time.monotonic()
        for connection in list(self.connections):
            connection.look(now_s)
        self._looking = asyncio.get_running_loop().call_later(_LOOK_S, self._look)

    async def stop(self, grace_s: float) -> None:
        """Take nothing new, let calls end for so long, then end them with UNAVAILABLE."""
        self.stopping = True
        if self._looking is not None:
            self._looking.cancel()
        for listener in self._listeners:
            listener.close()
        while self._to_start:
            self._to_start.popleft().finish(grpc.StatusCode.UNAVAILABLE, _SHUTTING_DOWN)
        for connection in self.connections:
            connection.go_away()
        tasks = [
            call.task
            for connection in self.connections
            for call in connection.calls
            if call.task is not None
        ]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=grace_s)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
        for connection in list(self.connections):
            connection.close()
        self._listeners.clear()
