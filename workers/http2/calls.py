"""One gRPC call on a stream, which servicers see as their context (PROTOCOL-HTTP2 of gRPC).

Has the part of grpc.aio.ServicerContext that the router's servicers, health and reflection use, so
that these run unchanged.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import struct
import time
import zlib
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from typing import NoReturn, Protocol, cast
from urllib.parse import quote

import grpc

from workers.http2.frames import header_block

_LOG = logging.getLogger(__name__)

_PREFIX = struct.Struct(">BI")
_RESPONSE_HEADERS = header_block(
    (("content-type", "application/grpc"), ("grpc-accept-encoding", "identity,gzip"))
)
# ":status: 200" is entry 8 of the static table.
RESPONSE_BLOCK = b"\x88" + _RESPONSE_HEADERS
_OK_TRAILERS = header_block((("grpc-status", "0"),))
_PRINTABLE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
_UNITS_S = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
Metadata = tuple[tuple[str, str | bytes], ...]


class Wire(Protocol):
    """The connection as a call sees it."""

    peer: str

    def send_headers(self, stream_id: int, block: bytes) -> None: ...

    def send_message(self, stream_id: int, data: bytes) -> bool:
        """False when it waits for the peer; the call's `writable` is then called."""

    def send_trailers(self, stream_id: int, block: bytes) -> None: ...

    def ready(self, call: Call) -> None:
        """The request is there: `run` is to be called, soon."""

    def call_ended(self, stream_id: int) -> None: ...


class TooLarge(Exception):
    """A call sends more than this server takes."""


class Call:
    """One call. Created when its headers are there; its handler runs when a message is, too.

    `received_s` is when that was, on the monotonic clock.
    """

    def __init__(
        self,
        wire: Wire,
        stream_id: int,
        handler: grpc.RpcMethodHandler[object, object],
        headers: Mapping[str, str],
        most_bytes: int,
        most_waiting: int,
    ) -> None:
        self._wire = wire
        self._stream_id = stream_id
        self._handler = handler
        self._headers = headers
        self._most_bytes = most_bytes
        self._most_waiting = most_waiting
        self._body = bytearray()
        self._requests: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._ready = False
        self.received_s = 0.0
        self._headers_sent = False
        self._ended = False
        self._room: asyncio.Future[None] | None = None
        self._code: grpc.StatusCode = grpc.StatusCode.OK
        self._details = ""
        self._trailing: Sequence[tuple[str, str | bytes]] = ()
        self._timer: asyncio.TimerHandle | None = None
        timeout_s = _timeout_s(headers.get("grpc-timeout", ""))
        self._due_s = None if timeout_s is None else time.monotonic() + timeout_s
        if timeout_s is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(timeout_s, self._time_is_over)

    @property
    def task(self) -> asyncio.Task[None] | None:
        """The handler, once it runs."""
        return self._task

    # What the connection tells.

    def data(self, data: bytes, ended: bool) -> None:
        """A part of the request came; the handler starts with the first whole message."""
        body = self._body
        body += data
        try:
            while len(body) >= _PREFIX.size:
                compressed, size = _PREFIX.unpack_from(body)
                if size > self._most_bytes:
                    raise TooLarge(f"a message of {size} bytes is larger than {self._limit}")
                end = _PREFIX.size + size
                if len(body) < end:
                    break
                message = bytes(body[_PREFIX.size : end])
                del body[:end]
                if self._requests.qsize() >= self._most_waiting or (
                    self._ready and not self._handler.request_streaming
                ):
                    raise TooLarge("more messages came than the method takes")
                self._requests.put_nowait(self._plain(message) if compressed else message)
                self._start()
        except TooLarge as error:
            self.finish(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
            if self._task is not None:
                self._task.cancel()
            return
        except (zlib.error, NotImplementedError) as error:
            self.finish(grpc.StatusCode.UNIMPLEMENTED, f"the message does not unpack: {error}")
            return
        if ended:
            self._requests.put_nowait(None)
            self._start()

    @property
    def _limit(self) -> str:
        return f"the {self._most_bytes} bytes that are taken"

    def _plain(self, message: bytes) -> bytes:
        encoding = self._headers.get("grpc-encoding", "identity")
        if encoding != "gzip":
            raise NotImplementedError(f"grpc-encoding {encoding!r} is not known; use gzip")
        unpacker = zlib.decompressobj(wbits=31)
        plain = unpacker.decompress(message, self._most_bytes)
        if unpacker.unconsumed_tail:
            raise TooLarge(f"an unpacked message is larger than {self._limit}")
        return plain

    def writable(self) -> None:
        """What waited has gone out."""
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def gone(self) -> None:
        """The client, or its connection, has gone: the handler ends where it stands."""
        self._ended = True
        self._stop_timer()
        if self._task is not None:
            self._task.cancel()
        else:
            self._wire.call_ended(self._stream_id)

    # What servicers call.

    async def write(self, message: object) -> None:
        """Send one message; waits while the client, or the way to it, takes no more."""
        if self._ended:
            raise asyncio.CancelledError
        serialize = self._handler.response_serializer
        assert serialize is not None
        if not self.send(serialize(message)):
            await self.room()

    def send(self, payload: bytes) -> bool:
        """Send one message that is bytes already; False: `room` has to be waited for before the
        next one. Nothing happens after the end."""
        if self._ended:
            return True
        if not self._headers_sent:
            self._headers_sent = True
            self._wire.send_headers(self._stream_id, RESPONSE_BLOCK)
        if self._wire.send_message(self._stream_id, _PREFIX.pack(0, len(payload)) + payload):
            return True
        self._room = asyncio.get_running_loop().create_future()
        return False

    async def room(self) -> None:
        """Wait until what was sent has gone out."""
        if self._room is not None:
            await self._room

    async def abort(
        self,
        code: grpc.StatusCode,
        details: str = "",
        trailing_metadata: Sequence[tuple[str, str | bytes]] = (),
    ) -> NoReturn:
        """End the call with a status."""
        self._code, self._details, self._trailing = code, details, tuple(trailing_metadata)
        raise grpc.aio.AbortError

    def set_code(self, code: grpc.StatusCode) -> None:
        """The status to end with."""
        self._code = code

    def set_details(self, details: str) -> None:
        """The message to end with."""
        self._details = details

    def invocation_metadata(self) -> Metadata:
        """What the client sent along; values of `-bin` keys are bytes."""
        return tuple(
            (name, _unbase64(value) if name.endswith("-bin") else value)
            for name, value in self._headers.items()
            if not name.startswith(":")
        )

    def peer(self) -> str:
        """Who calls, as gRPC writes it."""
        return self._wire.peer

    def time_remaining(self) -> float | None:
        """Seconds to the client's deadline; None without one."""
        return None if self._due_s is None else max(0.0, self._due_s - time.monotonic())

    # The handler's run.

    def _start(self) -> None:
        if not self._ready and not self._ended:
            self._ready = True
            self.received_s = time.monotonic()
            self._wire.ready(self)

    def run(self) -> None:
        """Begin with the handler, unless the call has ended while it waited."""
        if not self._ended:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        handler = self._handler
        deserialize = handler.request_deserializer
        assert deserialize is not None
        try:
            try:
                if handler.request_streaming:
                    request: object = _Messages(self._requests, deserialize)
                else:
                    raw = self._requests.get_nowait()
                    if raw is None:
                        await self.abort(grpc.StatusCode.INTERNAL, "the request has no message")
                    request = deserialize(raw)
            except (ValueError, TypeError) as error:
                await self.abort(grpc.StatusCode.INTERNAL, f"the request does not parse: {error}")
            await self._answer(request)
        except grpc.aio.AbortError:
            pass
        except asyncio.CancelledError:
            if not self._ended:  # a server that stops
                self.finish(grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
            return
        except NotImplementedError:
            self._code = grpc.StatusCode.UNIMPLEMENTED
        except Exception as error:  # noqa: BLE001 - the last line of defence, and logged
            _LOG.exception("a call failed")
            self._code, self._details = grpc.StatusCode.UNKNOWN, type(error).__name__
        finally:
            self._wire.call_ended(self._stream_id)
        self.finish(self._code, self._details, self._trailing)

    async def _answer(self, request: object) -> None:
        handler = self._handler
        if handler.response_streaming:
            method = handler.stream_stream if handler.request_streaming else handler.unary_stream
            assert method is not None
            answers: object = method(request, self)  # type: ignore[arg-type]
            if isinstance(answers, AsyncGenerator):
                async with contextlib.aclosing(answers):
                    async for answer in answers:
                        await self.write(answer)
            else:  # a coroutine that writes for itself
                await cast("Awaitable[None]", answers)
            return
        once = handler.stream_unary if handler.request_streaming else handler.unary_unary
        assert once is not None
        answer = once(request, self)  # type: ignore[arg-type]
        await self.write(await cast("Awaitable[object]", answer))

    def _time_is_over(self) -> None:
        self.finish(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed")
        if self._task is not None:
            self._task.cancel()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def finish(
        self,
        code: grpc.StatusCode,
        details: str = "",
        metadata: Iterable[tuple[str, str | bytes]] = (),
    ) -> None:
        """End the call for the client; nothing happens when it has ended."""
        if self._ended:
            return
        self._ended = True
        self._stop_timer()
        if not self._headers_sent:
            self._wire.send_headers(self._stream_id, RESPONSE_BLOCK)
        if code is grpc.StatusCode.OK and not metadata:
            self._wire.send_trailers(self._stream_id, _OK_TRAILERS)
        else:
            self._wire.send_trailers(self._stream_id, trailers(code, details, metadata))
        if self._task is None:
            self._wire.call_ended(self._stream_id)


class _Messages:
    """What a client sends on one call, as its handler iterates over it."""

    def __init__(
        self, raw: asyncio.Queue[bytes | None], deserialize: Callable[[bytes], object]
    ) -> None:
        self._raw = raw
        self._deserialize = deserialize

    def __aiter__(self) -> _Messages:
        return self

    async def __anext__(self) -> object:
        raw = await self._raw.get()
        if raw is None:
            raise StopAsyncIteration
        return self._deserialize(raw)


def trailers(
    code: grpc.StatusCode, details: str, metadata: Iterable[tuple[str, str | bytes]] = ()
) -> bytes:
    """The header block that ends a call with a status."""
    number: int = code.value[0]
    fields = [("grpc-status", str(number))]
    if details:
        fields.append(("grpc-message", quote(details, safe=_PRINTABLE)))
    for name, value in metadata:
        text = base64.b64encode(value).decode() if isinstance(value, bytes) else value
        fields.append((name, text))
    return header_block(fields)


def _timeout_s(text: str) -> float | None:
    """The value of a grpc-timeout header; None without one, or where it is none."""
    if len(text) < 2 or not text[:-1].isdecimal() or text[-1] not in _UNITS_S:
        return None
    return int(text[:-1]) * _UNITS_S[text[-1]]


def _unbase64(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4))
