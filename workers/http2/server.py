"""Serves gRPC methods at addresses: connections of the event loop, calls on their streams."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import deque
from collections.abc import Mapping, Sequence

import grpc

from workers.http2.calls import Call
from workers.http2.server_protocol import SHUTTING_DOWN, Handler, ServerProtocol

_LOOK_S = 10.0
# Tokens of calls that run must not wait until a burst of new ones is through, nor these for ever:
# so many begin in a turn of the loop, or one for each so much time that the last turn took. One
# takes some 0.3 ms, so that is half of the loop's time.
_STARTS_AT_ONCE = 4
_START_EVERY_S = 0.0006


class Http2Server:
    """A gRPC server; servicers are added by the generated `add_..._to_server` functions."""

    def __init__(self, most_message_bytes: int, most_waiting: int = 64) -> None:
        """A call may have `most_waiting` messages that its handler has not taken."""
        self.most_message_bytes = most_message_bytes
        self.most_waiting = most_waiting
        self.connections: set[ServerProtocol] = set()
        self.stopping = False
        self._methods: dict[str, Handler] = {}
        self._listeners: list[asyncio.AbstractServer] = []
        self._looking: asyncio.TimerHandle | None = None
        self._to_start: deque[Call] = deque()
        self._starting: asyncio.Handle | None = None
        self._begun = 0  # in this turn of the loop, before `_start_some` has its own
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
        """Have a call begin in its turn, at once if few others have in this turn of the loop."""
        if self._starting is None:
            self._started_s = time.monotonic()
            self._starting = asyncio.get_running_loop().call_soon(self._start_some)
        if self._begun < _STARTS_AT_ONCE and not self._to_start:
            self._begun += 1
            call.run()
        else:
            self._to_start.append(call)

    def _start_some(self) -> None:
        self._starting = None
        self._begun = 0
        now_s = time.monotonic()
        most = max(_STARTS_AT_ONCE, int((now_s - self._started_s) / _START_EVERY_S))
        self._started_s = now_s
        for _ in range(min(most, len(self._to_start))):
            self._begun += 1
            self._to_start.popleft().run()
        if self._begun:
            self._starting = asyncio.get_running_loop().call_soon(self._start_some)

    async def listen(
        self, host: str, port: int, tls: ssl.SSLContext | None = None, reuse_port: bool = False
    ) -> int:
        """Serve at an address; returns the port. Raises OSError."""
        if tls is not None:
            tls.set_alpn_protocols(["h2"])
        listener = await asyncio.get_running_loop().create_server(
            lambda: ServerProtocol(self), host, port, ssl=tls, reuse_port=reuse_port or None
        )
        self._listeners.append(listener)
        if self._looking is None:
            self._look()
        bound: int = listener.sockets[0].getsockname()[1]
        return bound

    async def listen_unix(self, path: str) -> None:
        """Serve at a Unix socket. Raises OSError."""
        listener = await asyncio.get_running_loop().create_unix_server(
            lambda: ServerProtocol(self), path
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
            self._to_start.popleft().finish(grpc.StatusCode.UNAVAILABLE, SHUTTING_DOWN)
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
