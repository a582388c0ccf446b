"""Frames of HTTP/2 (RFC 9113) and header blocks as far as a gRPC server writes them. Pure."""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER_BYTES: Final = 9

DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

ACK: Final = 0x1  # of SETTINGS and PING
END_STREAM: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
HAS_PRIORITY: Final = 0x20

SETTING_ENABLE_PUSH: Final = 2
SETTING_MAX_CONCURRENT_STREAMS: Final = 3
SETTING_INITIAL_WINDOW: Final = 4
SETTING_MAX_FRAME: Final = 5
SETTING_MAX_HEADER_LIST: Final = 6


class ErrorCode(enum.IntEnum):
    """Why a stream or a connection ends (RFC 9113, section 7)."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    ENHANCE_YOUR_CALM = 11


class Http2Error(Exception):
    """The peer broke the protocol, so its connection ends."""

    def __init__(self, code: ErrorCode, detail: str) -> None:
        super().__init__(detail)
        self.code = code


_HEAD = struct.Struct(">HBBBI")


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """One frame."""
    length = len(payload)
    return _HEAD.pack(length >> 8, length & 0xFF, kind, flags, stream_id) + payload


def frame_head(buffer: bytes | bytearray, at: int) -> tuple[int, int, int, int]:
    """Length of the payload, kind, flags and stream of the frame at an offset."""
    high, low, kind, flags, stream_id = _HEAD.unpack_from(buffer, at)
    return high << 8 | low, kind, flags, stream_id & 0x7FFFFFFF


def settings(values: Iterable[tuple[int, int]]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *value) for value in values))


def window_update(stream_id: int, increment: int) -> bytes:
    """A WINDOW_UPDATE frame."""
    return frame(WINDOW_UPDATE, 0, stream_id, struct.pack(">I", increment))


def rst_stream(stream_id: int, code: ErrorCode) -> bytes:
    """A RST_STREAM frame."""
    return frame(RST_STREAM, 0, stream_id, struct.pack(">I", code))


def goaway(last_stream_id: int, code: ErrorCode, detail: str = "") -> bytes:
    """A GOAWAY frame."""
    return frame(GOAWAY, 0, 0, struct.pack(">II", last_stream_id, code) + detail.encode()[:256])


def header_block(headers: Iterable[tuple[str, str]]) -> bytes:
    """Headers as literals without indexing (RFC 7541, section 6.2.2): larger than need be by some
    bytes, and without any state."""
    parts = []
    for name, value in headers:
        parts += [b"\x00", _string(name.encode("ascii")), _string(value.encode("latin-1"))]
    return b"".join(parts)


def _string(raw: bytes) -> bytes:
    length = len(raw)
    if length < 0x7F:
        return bytes((length,)) + raw
    length -= 0x7F
    digits = [0x7F]
    while length >= 0x80:
        digits.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes((*digits, length)) + raw
