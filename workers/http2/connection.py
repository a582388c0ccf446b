"""What both sides of an HTTP/2 connection do: bytes in, events and bytes out. Pure.

Keeps the order of frames, flow control both ways, and limits on what a peer may make it hold.
Raises Http2Error for a peer that breaks the protocol; the connection is then to be closed. What
differs between a client and a server is in `client_side` and `server_side`.
"""

from __future__ import annotations

import abc
import logging
import struct
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, TypeAlias, cast

from hpack import Decoder
from hpack.exceptions import HPACKError

from workers.http2 import frames
from workers.http2.floods import RAPID_RESET, RAPID_S, Budget
from workers.http2.frames import ErrorCode, Http2Error

# At level DEBUG it logs every header, and so every key.
logging.getLogger("hpack").setLevel(logging.WARNING)

Headers: TypeAlias = list[tuple[str, str]]

_DEFAULT_WINDOW: Final = 65_535
_MOST_WINDOW: Final = 2**31 - 1
_DEFAULT_FRAME: Final = 16_384
# What a peer may send before it hears of it: a long prompt in one go.
_STREAM_WINDOW: Final = 1 << 20
_CONNECTION_WINDOW: Final = 16 << 20
_MOST_HEADER_BYTES: Final = 64 * 1024
_MOST_CONTINUATIONS: Final = 32
_KNOWN_BLOCKS: Final = 64
_KNOWN_BLOCK_BYTES: Final = 128
# A part of a body that is smaller, and not the last, is not worth its frame.
_SMALL_BYTES: Final = 5


# What comes with every call or message has its own `__init__` and Final fields, not frozen ones:
# mypyc compiles no `__init__` of dataclasses.


@dataclass(slots=True, init=False)
class HeadersCame:
    """A stream was opened, or answered: headers, or the trailers that end it."""

    stream_id: Final[int]
    headers: Final[Headers]
    ended: Final[bool]

    def __init__(self, stream_id: int, headers: Headers, ended: bool) -> None:
        self.stream_id = stream_id
        self.headers = headers
        self.ended = ended


@dataclass(slots=True, init=False)
class DataCame:
    """A part of a body; `ended`: the last one, maybe empty."""

    stream_id: Final[int]
    data: Final[bytes]
    ended: Final[bool]

    def __init__(self, stream_id: int, data: bytes, ended: bool) -> None:
        self.stream_id = stream_id
        self.data = data
        self.ended = ended


@dataclass(frozen=True, slots=True)
class StreamReset:
    """The peer wants no more of a stream."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class Writable:
    """Everything given to a stream has gone out."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class WentAway:
    """The peer takes no more streams."""

    detail: str


Event: TypeAlias = HeadersCame | DataCame | StreamReset | Writable | WentAway


@dataclass(slots=True)
class Stream:
    """One stream that is open."""

    send_window: int
    opened_s: float = 0.0
    answered: bool = False
    received: int = 0  # bytes that the peer was not credited for yet
    remote_ended: bool = False
    waiting: deque[bytes] = field(default_factory=deque)  # what flow control holds back
    trailers: bytes | None = None  # to follow what waits


class Connection(abc.ABC):
    """One connection; `out` is what is to be written, taken by its owner."""

    def __init__(
        self, preface: bytes, settings: Iterable[tuple[int, int]], budget: Budget | None = None
    ) -> None:
        """`preface` is what a peer has to begin with; `settings` come before those of both; a peer
        without a `budget` is trusted."""
        self._preface = preface
        self._budget = budget
        self._worked: Callable[[], None] = _nothing if budget is None else budget.work
        self._now_s = 0.0
        self._buffer = bytearray()
        self._decoder = Decoder(max_header_list_size=_MOST_HEADER_BYTES)
        self._streams: dict[int, Stream] = {}
        # Streams with something waiting, and when the peer took a part of it last.
        self._held: dict[int, float] = {}
        self._known_blocks: dict[bytes, Headers] = {}
        self._last_stream_id = 0
        self._headers: tuple[int, int, bytearray] | None = None  # stream, flags, block so far
        self._continuations = 0
        self._send_window = _DEFAULT_WINDOW
        self._initial_window = _DEFAULT_WINDOW
        self._most_frame = _DEFAULT_FRAME
        self._received = 0
        self._events: list[Event] = []
        self.out: list[bytes] = [
            frames.settings(
                (
                    *settings,
                    (frames.SETTING_INITIAL_WINDOW, _STREAM_WINDOW),
                    (frames.SETTING_MAX_HEADER_LIST, _MOST_HEADER_BYTES),
                )
            ),
            frames.window_update(0, _CONNECTION_WINDOW - _DEFAULT_WINDOW),
        ]

    @property
    def greeted(self) -> bool:
        """Whether the peer has begun as it must."""
        return not self._preface

    def receive(self, data: bytes, now_s: float) -> list[Event]:
        """Take in what came at a time; raises Http2Error."""
        self._now_s = now_s
        buffer = self._buffer
        buffer += data
        at = 0
        if self._preface:
            preface = self._preface
            if buffer[: len(preface)] != preface[: len(buffer)]:
                raise Http2Error(ErrorCode.PROTOCOL_ERROR, "this is no HTTP/2 client")
            if len(buffer) < len(preface):
                return []
            self._preface = b""
            at = len(preface)
        while len(buffer) - at >= frames.HEADER_BYTES:
            length, kind, flags, stream_id = frames.frame_head(buffer, at)
            if length > _DEFAULT_FRAME:
                raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {length} bytes")
            end = at + frames.HEADER_BYTES + length
            if end > len(buffer):
                break
            self._take(kind, flags, stream_id, bytes(buffer[at + frames.HEADER_BYTES : end]))
            at = end
        del buffer[:at]
        events, self._events = self._events, []
        return events

    # What this side says.

    def send_data(self, stream_id: int, data: bytes) -> bool:
        """Send a part of an answer; False when it waits for the peer, and Writable will come."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return True
        size = len(data)
        if not stream.waiting and size <= min(
            self._send_window, stream.send_window, self._most_frame
        ):
            stream.send_window -= size
            self._send_window -= size
            self.out.append(frames.frame(frames.DATA, 0, stream_id, data))
            self._worked()
            return True
        stream.waiting.append(data)
        if self._send_waiting(stream_id, stream):
            return True
        self._held.setdefault(stream_id, self._now_s)
        return False

    def reset(self, stream_id: int, code: ErrorCode) -> None:
        """Break a stream off."""
        if self._close(stream_id):
            self.out.append(frames.rst_stream(stream_id, code))

    def go_away(self, code: ErrorCode = ErrorCode.NO_ERROR, detail: str = "") -> None:
        """Tell the peer to open no more streams."""
        self.out.append(frames.goaway(self._last_stream_id, code, detail))

    def stalled(self, before_s: float) -> list[int]:
        """Streams of which the peer has taken nothing since a time, though something waits."""
        return [stream_id for stream_id, since_s in self._held.items() if since_s < before_s]

    def _spend(self, amount: float = 1.0) -> None:
        """The peer did something that asks for nothing; raises Http2Error when it is too much."""
        if self._budget is not None and not self._budget.spend(amount, self._now_s):
            raise Http2Error(ErrorCode.ENHANCE_YOUR_CALM, "too many frames that ask for nothing")

    def waiting(self, stream_id: int) -> int:
        """How many pieces of a stream flow control holds back."""
        stream = self._streams.get(stream_id)
        return 0 if stream is None else len(stream.waiting)

    def _close(self, stream_id: int) -> bool:
        """Forget a stream; whether there was one."""
        self._held.pop(stream_id, None)
        return self._streams.pop(stream_id, None) is not None

    def _finish(self, stream_id: int, stream: Stream) -> None:
        """Say the trailers, after which this side says no more."""
        assert stream.trailers is not None
        flags = frames.END_HEADERS | frames.END_STREAM
        self.out.append(frames.frame(frames.HEADERS, flags, stream_id, stream.trailers))
        if not stream.remote_ended:
            self.out.append(frames.rst_stream(stream_id, ErrorCode.NO_ERROR))
        self._close(stream_id)

    def _send_waiting(self, stream_id: int, stream: Stream) -> bool:
        """Send what the windows allow; whether nothing is left."""
        waiting = stream.waiting
        while waiting:
            size = min(len(waiting[0]), self._send_window, stream.send_window, self._most_frame)
            if size <= 0 and waiting[0]:
                return False
            part, rest = waiting[0][:size], waiting[0][size:]
            stream.send_window -= size
            self._send_window -= size
            self.out.append(frames.frame(frames.DATA, 0, stream_id, part))
            if stream_id in self._held:
                self._held[stream_id] = self._now_s
            if rest:
                waiting[0] = rest
            else:
                waiting.popleft()
                self._worked()
        if stream.trailers is not None:
            self._finish(stream_id, stream)
        return True

    # What the peer says.

    def _take(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if self._headers is not None and kind != frames.CONTINUATION:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "a header block was broken off")
        match kind:
            case frames.DATA:
                self._take_data(flags, stream_id, payload)
            case frames.HEADERS:
                payload = _unpadded(flags, payload)
                if flags & frames.HAS_PRIORITY:
                    payload = payload[5:]
                self._headers = (stream_id, flags, bytearray())
                self._continuations = 0
                self._take_block(flags, payload)
            case frames.CONTINUATION:
                if self._headers is None or self._headers[0] != stream_id:
                    raise Http2Error(ErrorCode.PROTOCOL_ERROR, "a continuation of nothing")
                self._continuations += 1
                if self._continuations > _MOST_CONTINUATIONS:
                    raise Http2Error(ErrorCode.ENHANCE_YOUR_CALM, "too many continuations")
                self._take_block(flags, payload)
            case frames.RST_STREAM:
                if stream_id == 0 or stream_id > self._last_stream_id:
                    raise Http2Error(ErrorCode.PROTOCOL_ERROR, "a reset of no stream")
                self._take_reset(stream_id)
            case frames.SETTINGS:
                self._spend(1.0 + len(self._streams) / 100)
                self._take_settings(flags, payload)
            case frames.PING:
                self._spend()
                if len(payload) != 8:
                    raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "a ping has 8 bytes")
                if not flags & frames.ACK:
                    self.out.append(frames.frame(frames.PING, frames.ACK, 0, payload))
            case frames.WINDOW_UPDATE:
                self._spend()
                self._take_window(stream_id, payload)
            case frames.PUSH_PROMISE:
                raise Http2Error(ErrorCode.PROTOCOL_ERROR, "nobody may push")
            case frames.GOAWAY:
                self._events.append(WentAway(payload[8:].decode(errors="replace")))
            case _:  # PRIORITY and what later versions know
                self._spend()

    def _take_reset(self, stream_id: int) -> None:
        stream = self._streams.get(stream_id)
        if stream is None:
            self._spend()
            return
        if not stream.answered and self._now_s - stream.opened_s < RAPID_S:
            self._spend(RAPID_RESET)
        self._close(stream_id)
        self._events.append(StreamReset(stream_id))

    def _take_block(self, flags: int, payload: bytes) -> None:
        assert self._headers is not None
        stream_id, first_flags, block = self._headers
        block += payload
        if len(block) > _MOST_HEADER_BYTES:
            raise Http2Error(ErrorCode.ENHANCE_YOUR_CALM, "the headers are too long")
        if not flags & frames.END_HEADERS:
            return
        self._headers = None
        headers = self._decoded(bytes(block))
        self._take_headers(stream_id, headers, bool(first_flags & frames.END_STREAM))

    def _decoded(self, block: bytes) -> Headers:
        """The headers of every block, wanted or not: each may change the decoder's table.

        One of entries of the table alone (RFC 7541, section 6.1: bytes from 0x80 on) changes
        nothing, and comes with nearly every call of a connection.
        """
        if (known := self._known_blocks.get(block)) is not None:
            return known
        try:
            # Its types say bytes as well, which it gives only where it is asked to.
            headers = list(cast("Iterable[tuple[str, str]]", self._decoder.decode(block)))
        except (HPACKError, UnicodeDecodeError, ValueError) as error:
            raise Http2Error(ErrorCode.COMPRESSION_ERROR, "headers do not decode") from error
        if not block or min(block) < 0x80 or len(self._known_blocks) >= _KNOWN_BLOCKS:
            self._known_blocks.clear()
        elif len(block) <= _KNOWN_BLOCK_BYTES:
            self._known_blocks[block] = headers
        return headers

    @abc.abstractmethod
    def _take_headers(self, stream_id: int, headers: Headers, ended: bool) -> None:
        """Headers are whole: each side has its own way with them."""

    def _take_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id == 0 or stream_id > self._last_stream_id:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "data of no stream")
        self._received += len(payload)
        if self._received >= _CONNECTION_WINDOW // 2:
            self.out.append(frames.window_update(0, self._received))
            self._received = 0
        stream = self._streams.get(stream_id)
        if stream is None:
            self._spend()
            return
        if stream.remote_ended:
            raise Http2Error(ErrorCode.STREAM_CLOSED, "data after the end")
        stream.received += len(payload)
        data = _unpadded(flags, payload)
        if flags & frames.END_STREAM:
            self._worked()
            self._end_remote(stream_id, stream, data)
            return
        if len(data) < _SMALL_BYTES:
            self._spend()
        else:
            self._worked()
        if stream.received >= _STREAM_WINDOW // 2:
            self.out.append(frames.window_update(stream_id, stream.received))
            stream.received = 0
        self._events.append(DataCame(stream_id, data, False))

    def _end_remote(self, stream_id: int, stream: Stream, data: bytes) -> None:
        stream.remote_ended = True
        self._events.append(DataCame(stream_id, data, True))

    def _take_settings(self, flags: int, payload: bytes) -> None:
        if flags & frames.ACK:
            return
        if len(payload) % 6:
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "settings of a wrong length")
        # The last value of each holds, so the others need not be gone through all streams.
        for name, value in dict(struct.iter_unpack(">HI", payload)).items():
            if name == frames.SETTING_INITIAL_WINDOW:
                if value > _MOST_WINDOW:
                    raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "a window too large")
                for stream in self._streams.values():
                    stream.send_window += value - self._initial_window
                self._initial_window = value
            elif name == frames.SETTING_MAX_FRAME:
                if not _DEFAULT_FRAME <= value < 1 << 24:
                    raise Http2Error(ErrorCode.PROTOCOL_ERROR, "a frame size out of range")
                self._most_frame = value
        self.out.append(frames.frame(frames.SETTINGS, frames.ACK, 0))
        self._resume_all()

    def _take_window(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "a window update has 4 bytes")
        increment = int.from_bytes(payload) & _MOST_WINDOW
        if stream_id == 0:
            self._send_window += increment
            if increment == 0 or self._send_window > _MOST_WINDOW:
                raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "a window out of range")
            self._resume_all()
            return
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        stream.send_window += increment
        if increment == 0 or stream.send_window > _MOST_WINDOW:
            self.reset(stream_id, ErrorCode.FLOW_CONTROL_ERROR)
            self._events.append(StreamReset(stream_id))
        else:
            self._resume(stream_id, stream)

    def _resume_all(self) -> None:
        for stream_id in list(self._held):
            if self._send_window <= 0:
                return
            self._resume(stream_id, self._streams[stream_id])

    def _resume(self, stream_id: int, stream: Stream) -> None:
        if stream.waiting and self._send_waiting(stream_id, stream):
            self._held.pop(stream_id, None)
            self._events.append(Writable(stream_id))


def _unpadded(flags: int, payload: bytes) -> bytes:
    if not flags & frames.PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise Http2Error(ErrorCode.PROTOCOL_ERROR, "more padding than payload")
    return payload[1 : len(payload) - payload[0]]


def _nothing() -> None:
    """What a trusted peer's work pays for."""
