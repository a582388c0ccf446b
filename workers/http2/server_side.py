"""The server's side of one HTTP/2 connection: answers the streams of a client. Pure."""

from __future__ import annotations

from workers.http2 import frames
from workers.http2.connection import Connection, Headers, HeadersCame, Stream
from workers.http2.floods import RAPID_RESET, Budget
from workers.http2.frames import ErrorCode, Http2Error


class ServerConnection(Connection):
    """One client's connection, with at most so many streams open at once."""

    def __init__(self, most_streams: int, now_s: float) -> None:
        limit = (frames.SETTING_MAX_CONCURRENT_STREAMS, most_streams)
        super().__init__(frames.PREFACE, (limit,), Budget(now_s))
        self._most_streams = most_streams

    def send_headers(self, stream_id: int, block: bytes) -> None:
        """Open an answer; nothing happens when the stream has gone."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.answered = True
            self.out.append(frames.frame(frames.HEADERS, frames.END_HEADERS, stream_id, block))

    def send_trailers(self, stream_id: int, block: bytes) -> None:
        """End an answer, after what still waits."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        stream.trailers = block
        if not stream.waiting:
            self._finish(stream_id, stream)

    def _take_headers(self, stream_id: int, headers: Headers, ended: bool) -> None:
        stream = self._streams.get(stream_id)
        if stream is not None:  # trailers
            self._end_remote(stream_id, stream, b"")
            return
        if stream_id % 2 == 0 or stream_id <= self._last_stream_id:
            if stream_id and stream_id <= self._last_stream_id and stream_id % 2:
                self._spend()
                return  # of a stream that has ended here meanwhile
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, f"stream {stream_id} cannot be opened")
        self._last_stream_id = stream_id
        if len(self._streams) >= self._most_streams:
            self._spend(RAPID_RESET)
            self.out.append(frames.rst_stream(stream_id, ErrorCode.REFUSED_STREAM))
            return
        self._streams[stream_id] = Stream(
            self._initial_window, opened_s=self._now_s, remote_ended=ended
        )
        self._events.append(HeadersCame(stream_id, headers, ended))
