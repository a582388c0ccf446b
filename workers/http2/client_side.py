"""The client's side of one HTTP/2 connection: opens streams, reads their answers. Pure."""

from __future__ import annotations

from workers.http2 import frames
from workers.http2.connection import Connection, Headers, HeadersCame, Stream
from workers.http2.frames import ErrorCode, Http2Error


class ClientConnection(Connection):
    """A connection to one server."""

    def __init__(self) -> None:
        super().__init__(b"", ((frames.SETTING_ENABLE_PUSH, 0),))
        self.out.insert(0, frames.PREFACE)
        self._last_stream_id = -1

    def open(self, block: bytes) -> int:
        """Open a stream with these headers; its number."""
        self._last_stream_id += 2
        stream_id = self._last_stream_id
        self._streams[stream_id] = Stream(self._initial_window)
        self.out.append(frames.frame(frames.HEADERS, frames.END_HEADERS, stream_id, block))
        return stream_id

    def _take_headers(self, stream_id: int, headers: Headers, ended: bool) -> None:
        stream = self._streams.get(stream_id)
        if stream is None:
            if stream_id % 2 == 0 or stream_id > self._last_stream_id:
                raise Http2Error(ErrorCode.PROTOCOL_ERROR, f"an answer on stream {stream_id}")
            return  # of a stream that this side has broken off
        stream.remote_ended = ended
        self._events.append(HeadersCame(stream_id, headers, ended))
