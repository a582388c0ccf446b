"""The client's side against the server's: what is said arrives, in order, whatever the sizes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.http2 import frames
from workers.http2.client_side import ClientConnection
from workers.http2.connection import DataCame, Event, HeadersCame, StreamReset
from workers.http2.frames import ErrorCode, Http2Error
from workers.http2.server_side import ServerConnection

_BLOCK = frames.header_block(((":method", "POST"), (":path", "/s/M")))


class Pair:
    """A client and a server that hear each other at once."""

    def __init__(self) -> None:
        self.client = ClientConnection()
        self.server = ServerConnection(10, 0.0)
        self.settle()

    def settle(self) -> tuple[list[Event], list[Event]]:
        """Carry bytes until neither side says more; what the client and the server made of them."""
        heard: tuple[list[Event], list[Event]] = ([], [])
        while self.client.out or self.server.out:
            said, self.client.out = b"".join(self.client.out), []
            heard[1].extend(self.server.receive(said, 0.0))
            answer, self.server.out = b"".join(self.server.out), []
            heard[0].extend(self.client.receive(answer, 0.0))
        return heard


@settings(deadline=None)
@given(st.lists(st.integers(0, 200_000), max_size=6))
def test_messages_of_any_size_arrive_both_ways(sizes: list[int]) -> None:
    pair = Pair()
    stream_id = pair.client.open(_BLOCK)
    assert stream_id == 1
    said = b""
    got = [b"", b""]
    for number, size in enumerate(sizes):
        data = bytes([number]) * size
        said += data
        pair.client.send_data(stream_id, data)
        sides = pair.settle()
        pair.server.send_data(stream_id, data)
        for heard in (sides, pair.settle()):
            for side, events in enumerate(heard):
                got[side] += b"".join(e.data for e in events if isinstance(e, DataCame))
    assert got == [said, said]
    assert pair.client.waiting(stream_id) == pair.server.waiting(stream_id) == 0


def test_an_answer_has_headers_data_and_the_trailers_that_end_it() -> None:
    pair = Pair()
    first, second = pair.client.open(_BLOCK), pair.client.open(_BLOCK)
    assert (first, second) == (1, 3)
    _, events = pair.settle()
    assert [event.stream_id for event in events if isinstance(event, HeadersCame)] == [1, 3]
    pair.server.send_headers(1, frames.header_block(((":status", "200"),)))
    pair.server.send_data(1, b"data")
    pair.server.send_trailers(1, frames.header_block((("grpc-status", "0"),)))
    answer, _ = pair.settle()
    assert answer[:3] == [
        HeadersCame(1, [(":status", "200")], False),
        DataCame(1, b"data", False),
        HeadersCame(1, [("grpc-status", "0")], True),
    ]
    pair.client.reset(3, ErrorCode.CANCEL)
    _, events = pair.settle()
    assert events == [StreamReset(3)]


def test_an_answer_that_nobody_asked_for_breaks_the_connection() -> None:
    client = ClientConnection()
    with pytest.raises(Http2Error, match="stream 1"):
        client.receive(frames.frame(frames.HEADERS, frames.END_HEADERS, 1, b"\x88"), 0.0)
