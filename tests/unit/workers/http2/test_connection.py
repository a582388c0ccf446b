"""The server's side of an HTTP/2 connection, byte by byte and whatever the bytes are."""

from __future__ import annotations

import struct

import pytest
from hpack import Decoder, Encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.http2 import frames
from workers.http2.connection import (
    DataCame,
    Event,
    HeadersCame,
    StreamReset,
    Writable,
)
from workers.http2.frames import ErrorCode, Http2Error
from workers.http2.server_side import ServerConnection

_HEADERS = [(":method", "POST"), (":path", "/s/M"), ("content-type", "application/grpc")]


class Peer:
    """A client of one connection: sends frames, and reads those that it gets."""

    def __init__(self, most_streams: int = 10) -> None:
        self.server = ServerConnection(most_streams, 0.0)
        self.now_s = 0.0
        self.encoder, self.decoder = Encoder(), Decoder()
        self.greet()

    def greet(self) -> None:
        self.say(frames.PREFACE + frames.settings(()))
        self.read()

    def say(self, data: bytes) -> list[Event]:
        return self.server.receive(data, self.now_s)

    def open(self, stream_id: int, end: bool = False) -> list[Event]:
        return self.say(self.opening(stream_id, end))

    def opening(self, stream_id: int, end: bool = False) -> bytes:
        """The frame that opens a stream."""
        flags = frames.END_HEADERS | (frames.END_STREAM if end else 0)
        return frames.frame(frames.HEADERS, flags, stream_id, self.encoder.encode(_HEADERS))

    def read(self) -> list[tuple[int, int, int, bytes]]:
        """Kind, flags, stream and payload of every frame that was said."""
        data, self.server.out = b"".join(self.server.out), []
        found, at = [], 0
        while at < len(data):
            length, kind, flags, stream_id = frames.frame_head(data, at)
            at += frames.HEADER_BYTES
            found.append((kind, flags, stream_id, data[at : at + length]))
            at += length
        return found

    def headers(self, block: bytes) -> list[tuple[str, str]]:
        return [(str(name), str(value)) for name, value in self.decoder.decode(block)]

    def data_of(self, stream_id: int) -> bytes:
        return b"".join(
            payload
            for kind, _, stream, payload in self.read()
            if (kind, stream) == (frames.DATA, stream_id)
        )


def test_a_request_opens_gets_data_and_is_answered() -> None:
    peer = Peer()
    assert peer.open(1) == [HeadersCame(1, _HEADERS, False)]
    assert peer.say(frames.frame(frames.DATA, 0, 1, b"abc")) == [DataCame(1, b"abc", False)]
    padded = frames.frame(frames.DATA, frames.PADDED | frames.END_STREAM, 1, b"\x02de\0\0")
    assert peer.say(padded) == [DataCame(1, b"de", True)]
    peer.server.send_headers(1, frames.header_block((("a", "b"),)))
    assert peer.server.send_data(1, b"answer")
    peer.server.send_trailers(1, frames.header_block((("grpc-status", "0"),)))
    opening, data, end = peer.read()
    assert opening[:3] == (frames.HEADERS, frames.END_HEADERS, 1)
    assert peer.headers(opening[3]) == [("a", "b")]
    assert data == (frames.DATA, 0, 1, b"answer")
    assert end[1] & frames.END_STREAM
    assert peer.headers(end[3]) == [("grpc-status", "0")]


def test_long_header_values_are_written_as_they_are_read() -> None:
    for length in (0, 126, 127, 128, 300, 20_000):
        fields = [("name", "v" * length)]
        assert Peer().headers(frames.header_block(fields)) == fields


def test_data_waits_for_the_windows_and_the_end_for_the_data() -> None:
    peer = Peer()
    peer.say(frames.settings([(frames.SETTING_INITIAL_WINDOW, 10)]))
    peer.open(1, end=True)
    assert not peer.server.send_data(1, b"0123456789abcdef")
    assert not peer.server.send_data(1, b"!")
    peer.server.send_trailers(1, b"")
    assert peer.data_of(1) == b"0123456789"
    assert peer.say(frames.window_update(1, 3)) == []
    assert peer.data_of(1) == b"abc"
    assert peer.say(frames.window_update(1, 100)) == [Writable(1)]
    read = peer.read()
    assert b"".join(payload for kind, _, _, payload in read if kind == frames.DATA) == b"def!"
    assert read[-1][:3] == (frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, 1)


def test_the_window_of_the_connection_is_shared_and_settings_change_open_streams() -> None:
    peer = Peer()
    peer.say(frames.settings([(frames.SETTING_INITIAL_WINDOW, 0)]))
    for stream_id in (1, 3):
        peer.open(stream_id)
        assert not peer.server.send_data(stream_id, b"x" * 40_000)
    peer.read()
    peer.say(frames.settings([(frames.SETTING_INITIAL_WINDOW, 40_000)]))
    sent = [len(p) for kind, _, _, p in peer.read() if kind == frames.DATA]
    assert sum(sent) == 65_535
    assert max(sent) <= 16_384
    assert peer.say(frames.window_update(0, 100_000)) == [Writable(3)]


def test_what_was_received_is_credited_before_the_windows_close() -> None:
    peer = Peer()
    peer.open(1)
    sent = 0
    credited = {0: 0, 1: 0}
    for _ in range(2000):
        peer.say(frames.frame(frames.DATA, 0, 1, b"x" * 16_384))
        sent += 16_384
        for kind, _, stream_id, payload in peer.read():
            assert kind == frames.WINDOW_UPDATE
            credited[stream_id] += int.from_bytes(payload)
        assert sent - credited[1] < 1 << 20
        assert sent - credited[0] < 16 << 20


def test_streams_beyond_the_limit_are_refused_and_the_others_go_on() -> None:
    peer = Peer(most_streams=2)
    assert len(peer.open(1) + peer.open(3)) == 2
    assert peer.open(5) == []
    assert peer.read()[-1] == (frames.RST_STREAM, 0, 5, struct.pack(">I", ErrorCode.REFUSED_STREAM))
    assert peer.say(frames.rst_stream(1, ErrorCode.CANCEL)) == [StreamReset(1)]
    assert len(peer.open(7)) == 1


def test_a_stream_that_has_gone_takes_nothing_and_says_nothing() -> None:
    peer = Peer()
    peer.open(1)
    peer.say(frames.rst_stream(1, ErrorCode.CANCEL))
    assert peer.server.send_data(1, b"late")
    peer.server.send_trailers(1, b"")
    assert peer.read() == []
    assert peer.say(frames.frame(frames.DATA, 0, 1, b"late")) == []
    assert peer.say(frames.window_update(1, 5)) == []


def test_pings_are_answered_and_headers_may_come_in_pieces() -> None:
    peer = Peer()
    peer.say(frames.frame(frames.PING, 0, 0, b"12345678"))
    assert peer.read() == [(frames.PING, frames.ACK, 0, b"12345678")]
    block = peer.encoder.encode(_HEADERS)
    assert peer.say(frames.frame(frames.HEADERS, 0, 1, block[:3])) == []
    events = peer.say(frames.frame(frames.CONTINUATION, frames.END_HEADERS, 1, block[3:]))
    assert events == [HeadersCame(1, _HEADERS, False)]


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", ErrorCode.PROTOCOL_ERROR),
        (frames.frame(frames.DATA, 0, 1, b"x"), ErrorCode.PROTOCOL_ERROR),
        (frames.frame(frames.RST_STREAM, 0, 9, b"\0\0\0\0"), ErrorCode.PROTOCOL_ERROR),
        (frames.frame(frames.HEADERS, frames.END_HEADERS, 2, b"\x82"), ErrorCode.PROTOCOL_ERROR),
        (frames.frame(frames.HEADERS, frames.END_HEADERS, 1, b"\xff"), ErrorCode.COMPRESSION_ERROR),
        (frames.frame(frames.PING, 0, 0, b"1"), ErrorCode.FRAME_SIZE_ERROR),
        (frames.frame(frames.DATA, 0, 1, b"x" * 20_000), ErrorCode.FRAME_SIZE_ERROR),
        (frames.window_update(0, 0), ErrorCode.FLOW_CONTROL_ERROR),
        (frames.frame(frames.PUSH_PROMISE, 0, 1, b"\0" * 8), ErrorCode.PROTOCOL_ERROR),
        (
            frames.frame(frames.HEADERS, 0, 1, b"\x82") + frames.frame(frames.PING, 0, 0, b"1" * 8),
            ErrorCode.PROTOCOL_ERROR,
        ),
        (
            frames.frame(frames.HEADERS, 0, 1, b"")
            + frames.frame(frames.CONTINUATION, 0, 1, b"\x82" * 16_000) * 5,
            ErrorCode.ENHANCE_YOUR_CALM,
        ),
    ],
)
def test_a_peer_that_breaks_the_protocol_is_told_how(said: bytes, code: ErrorCode) -> None:
    server = ServerConnection(10, 0.0)
    if not said.startswith(b"GET"):
        server.receive(frames.PREFACE + frames.settings(()), 0.0)
    with pytest.raises(Http2Error) as caught:
        server.receive(said, 0.0)
    assert caught.value.code == code


_FRAMES = st.builds(
    frames.frame, st.integers(0, 11), st.integers(0, 255), st.integers(0, 9), st.binary(max_size=40)
)


@settings(deadline=None)
@given(st.lists(st.one_of(_FRAMES, st.binary(max_size=20)), max_size=30), st.integers(1, 50))
def test_no_bytes_do_more_than_end_the_connection(parts: list[bytes], piece: int) -> None:
    server = ServerConnection(3, 0.0)
    server.receive(frames.PREFACE, 0.0)
    data = b"".join(parts)
    try:
        for at in range(0, len(data), piece):
            for event in server.receive(data[at : at + piece], 0.0):
                if isinstance(event, HeadersCame):
                    server.send_data(event.stream_id, b"answer")
                    server.send_trailers(event.stream_id, b"")
    except Http2Error:
        pass


@settings(deadline=None)
@given(st.lists(st.integers(0, 3000), max_size=20), st.integers(1, 700), st.integers(1, 5000))
def test_an_answer_arrives_whole_whatever_the_windows(
    parts: list[int], increment: int, window: int
) -> None:
    peer = Peer()
    peer.say(frames.settings([(frames.SETTING_INITIAL_WINDOW, window)]))
    peer.open(1, end=True)
    peer.read()
    said = b""
    for number, size in enumerate(parts):
        data = bytes([number]) * size
        said += data
        peer.server.send_data(1, data)
    peer.server.send_trailers(1, b"")
    got, ended = b"", False
    for _ in range(100_000):
        for kind, _, _, payload in peer.read():
            got += payload if kind == frames.DATA else b""
            ended = ended or kind == frames.HEADERS
        if ended:
            break
        peer.now_s += 1.0  # a client that is slow, and not one that floods
        peer.say(frames.window_update(1, increment) + frames.window_update(0, increment))
    assert ended
    assert got == said
