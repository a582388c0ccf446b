"""A connection of the load client: gRPC calls that ask once, on the event loop, without tasks.

The client shares two cores with the router. With grpc.aio it took two thirds of what the router did
with the same messages, and the machine was full before the router was. Frames are as from grpcio:
headers from the table after the first call, a deadline, one message, the end of the request.
"""

from __future__ import annotations

import asyncio
import struct
import time
from typing import Protocol, cast
from urllib.parse import unquote

from hpack import Encoder

from workers.http2 import frames
from workers.http2.client_side import ClientConnection
from workers.http2.connection import DataCame, Headers, HeadersCame, StreamReset
from workers.http2.frames import ErrorCode

_PREFIX = struct.Struct(">BI")


class Answer(Protocol):
    """Told of everything that comes on one call."""

    def message(self, data: bytes) -> None:
        """One whole message."""

    def ended(self, problem: str) -> None:
        """Nothing more comes; `problem` is empty at a good end."""


class _Streams(ClientConnection):
    """Streams that ask once."""

    def __init__(self) -> None:
        super().__init__()
        self._blocks: dict[bytes, Headers] = {}

    def ask(self, block: bytes, message: bytes) -> int:
        """Open a stream with a request; its number. Raises RuntimeError for one that must wait."""
        stream_id = self.open(block)
        if not self.send_data(stream_id, _PREFIX.pack(0, len(message)) + message):
            raise RuntimeError(f"a request of {len(message)} bytes does not fit into the window")
        self.out.append(frames.frame(frames.DATA, frames.END_STREAM, stream_id))
        return stream_id

    def forget(self, stream_id: int) -> None:
        """A stream is over on both sides."""
        self._close(stream_id)

    def _decoded(self, block: bytes) -> Headers:
        # The router writes headers that change no table, so equal blocks mean the same.
        headers = self._blocks.get(block)
        if headers is None:
            headers = self._blocks[block] = super()._decoded(block)
        return headers


class Connection(asyncio.Protocol):
    """Calls one method at one address; `ready` is set when calls can be made."""

    def __init__(self, method: str, authority: str, timeout_s: int) -> None:
        """The server ends a call after `timeout_s`."""
        self._streams = _Streams()
        self._encoder = Encoder()
        self._headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", method),
            (":authority", authority),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("user-agent", "tandem-bench"),
            ("grpc-timeout", f"{timeout_s}S"),
        ]
        self._asked = 0
        self._block = b""
        self._answers: dict[int, Answer] = {}
        self._bodies: dict[int, bytearray] = {}  # of messages that came in parts
        self._transport: asyncio.Transport | None = None
        self._flushing = False
        self.ready = asyncio.Event()

    def call(self, request: bytes, answer: Answer) -> int:
        """Make a call; its number."""
        if self._asked < 2:  # the first puts its headers into the table, the second finds them
            self._block = self._encoder.encode(self._headers)
        self._asked += 1
        stream_id = self._streams.ask(self._block, request)
        self._answers[stream_id] = answer
        self._schedule()
        return stream_id

    def cancel(self, number: int) -> None:
        """Break a call off; its answer is told no more."""
        self._answers.pop(number, None)
        self._streams.reset(number, ErrorCode.CANCEL)
        self._schedule()

    def close(self) -> None:
        """Write what was said, and close."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class
        self._flush()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        for number in list(self._answers):
            self._end(number, f"the connection was lost: {error or 'it was closed'}")

    def data_received(self, data: bytes) -> None:
        events = self._streams.receive(data, time.monotonic())
        self.ready.set()  # the server's windows come first
        for event in events:
            match event:
                case DataCame():
                    self._take(event)
                case HeadersCame():
                    headers = dict(event.headers)
                    if event.ended:
                        detail = unquote(headers.get("grpc-message", ""))
                        status = headers.get("grpc-status")
                        self._end(event.stream_id, "" if status == "0" else f"{status}: {detail}")
                case StreamReset():
                    self._end(event.stream_id, "it was reset")
        self._schedule()

    def _take(self, event: DataCame) -> None:
        number, data = event.stream_id, event.data
        answer = self._answers.get(number)
        if answer is None:
            return
        body = self._bodies.get(number)
        if body is None and len(data) == _PREFIX.size + int.from_bytes(data[1:5]):
            answer.message(data[_PREFIX.size :])  # nearly always
            return
        if body is None:
            body = self._bodies[number] = bytearray()
        body += data
        while len(body) >= _PREFIX.size and len(body) >= (
            end := _PREFIX.size + int.from_bytes(body[1:5])
        ):
            answer.message(bytes(body[_PREFIX.size : end]))
            del body[:end]
        if not body:
            del self._bodies[number]

    def _end(self, number: int, problem: str) -> None:
        self._streams.forget(number)
        self._bodies.pop(number, None)
        answer = self._answers.pop(number, None)
        if answer is not None:
            answer.ended(problem)

    def _schedule(self) -> None:
        """Write once for everything that is said in this turn of the loop."""
        if self._streams.out and not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        out = self._streams.out
        if out and self._transport is not None:
            self._streams.out = []
            self._transport.write(b"".join(out))
