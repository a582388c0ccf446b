"""Too many frames that ask for nothing end a connection; honest clients never send them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable

import pytest

from tests.unit.workers.http2.test_connection import Peer
from workers.http2 import frames
from workers.http2.connection import DataCame, StreamReset, Writable
from workers.http2.floods import BURST, PER_S
from workers.http2.frames import ErrorCode, Http2Error

_MANY = 3 * int(BURST)


def _reset(stream_id: int) -> bytes:
    return frames.rst_stream(stream_id, ErrorCode.CANCEL)


def _ping(_: Peer, n: int) -> bytes:
    return frames.frame(frames.PING, 0, 0, struct.pack(">Q", n))


def _settings(_: Peer, n: int) -> bytes:
    return frames.settings(((frames.SETTING_INITIAL_WINDOW, 65_535 + n % 2),))


def _priority(_: Peer, n: int) -> bytes:
    return frames.frame(frames.PRIORITY, 0, 1, bytes(5))


def _empty_data(_: Peer, n: int) -> bytes:
    return frames.frame(frames.DATA, 0, 1)


def _window(_: Peer, n: int) -> bytes:
    return frames.window_update(1 if n % 2 else 0, 1)


def _closed_data(_: Peer, n: int) -> bytes:
    return frames.frame(frames.DATA, 0, 3, b"of a stream that was reset")


def _refusal(peer: Peer, said: Iterable[bytes]) -> tuple[ErrorCode, int]:
    """How a connection ends over what it is told, and after how much of it."""
    for count, data in enumerate(said):
        try:
            peer.say(data)
        except Http2Error as error:
            return error.code, count
        peer.read()
    raise AssertionError("it was all taken")


@pytest.mark.parametrize("flood", [_ping, _settings, _priority, _empty_data, _window, _closed_data])
def test_a_flood_ends_with_enhance_your_calm(flood: Callable[[Peer, int], bytes]) -> None:
    peer = Peer()
    peer.open(1)
    peer.open(3)
    peer.say(_reset(3))
    code, count = _refusal(peer, (flood(peer, n) for n in range(_MANY)))
    assert code is ErrorCode.ENHANCE_YOUR_CALM
    assert count > BURST / 2


def test_streams_that_are_reset_at_once_end_the_connection() -> None:
    peer = Peer()
    # With a whole message each, so that a handler has begun.
    code, count = _refusal(
        peer,
        (
            peer.opening(stream_id)
            + frames.frame(frames.DATA, frames.END_STREAM, stream_id, b"a message")
            + _reset(stream_id)
            for stream_id in range(1, _MANY, 2)
        ),
    )
    assert code is ErrorCode.ENHANCE_YOUR_CALM
    assert count < BURST / 4


def test_streams_beyond_the_limit_of_streams_end_the_connection() -> None:
    peer = Peer(most_streams=1)
    code, _ = _refusal(peer, (peer.opening(stream_id) for stream_id in range(1, _MANY, 2)))
    assert code is ErrorCode.ENHANCE_YOUR_CALM


def test_a_block_in_too_many_pieces_ends_the_connection() -> None:
    peer = Peer()
    peer.say(frames.frame(frames.HEADERS, 0, 1))
    code, count = _refusal(peer, (frames.frame(frames.CONTINUATION, 0, 1) for _ in range(100)))
    assert code is ErrorCode.ENHANCE_YOUR_CALM
    assert count < 50


def test_a_message_that_is_taken_byte_by_byte_ends_the_connection() -> None:
    peer = Peer()
    peer.say(frames.settings(((frames.SETTING_INITIAL_WINDOW, 0),)))
    peer.open(1)
    assert not peer.server.send_data(1, bytes(_MANY))
    code, _ = _refusal(peer, (frames.window_update(1, 1) for _ in range(_MANY)))
    assert code is ErrorCode.ENHANCE_YOUR_CALM


def test_what_a_busy_client_does_is_never_a_flood() -> None:
    # As gRPC's own client: for each message a window update of both, and a ping; all at one time.
    peer = Peer()
    for n in range(_MANY):
        stream_id = 2 * n + 1
        peer.open(stream_id)
        peer.say(frames.frame(frames.DATA, frames.END_STREAM, stream_id, b"request"))
        for _ in range(4):
            assert peer.server.send_data(stream_id, b"token")
            peer.say(frames.window_update(stream_id, 5) + frames.window_update(0, 5))
            peer.say(_ping(peer, n))
        peer.server.send_trailers(stream_id, b"")
        peer.read()


def test_answers_that_are_broken_off_are_no_flood() -> None:
    peer = Peer()
    for n in range(_MANY):
        stream_id = 2 * n + 1
        peer.open(stream_id)
        peer.server.send_headers(stream_id, b"")
        assert peer.say(_reset(stream_id)) == [StreamReset(stream_id)]


def test_requests_that_are_given_up_after_a_while_are_no_flood() -> None:
    peer = Peer(most_streams=_MANY)
    for n in range(_MANY):
        peer.open(2 * n + 1)
    peer.now_s = 5.0
    for n in range(_MANY):
        assert peer.say(_reset(2 * n + 1)) == [StreamReset(2 * n + 1)]


def test_time_pays_for_pings() -> None:
    peer = Peer()
    for n in range(_MANY):
        peer.now_s += 1.0 / PER_S
        peer.say(_ping(peer, n))


def test_only_streams_that_wait_are_gone_through_when_the_window_opens() -> None:
    peer = Peer(most_streams=100)
    for n in range(50):
        peer.open(2 * n + 1)
    peer.say(frames.window_update(0, 1 << 20))
    # One message fills the window of its stream, a second one waits.
    assert peer.server.send_data(1, bytes(65_535))
    assert not peer.server.send_data(1, b"more")
    assert peer.server.stalled(before_s=1.0) == [1]
    peer.now_s = 2.0
    assert peer.say(frames.window_update(1, 1)) == []
    assert peer.server.stalled(before_s=1.0) == []
    assert peer.server.stalled(before_s=3.0) == [1]
    assert peer.say(frames.window_update(1, 100)) == [Writable(1)]
    assert peer.server.stalled(before_s=3.0) == []


def test_headers_from_the_table_read_the_same_each_time_and_as_it_changes() -> None:
    peer = Peer(most_streams=100)
    first = peer.open(1)
    for stream_id in (3, 5, 7):
        (again,) = peer.open(stream_id)
        assert getattr(again, "headers") == getattr(first[0], "headers")  # noqa: B009
    # An entry of another request moves those of this one down the table.
    block = peer.encoder.encode([("x-other", "1")])
    peer.say(frames.frame(frames.HEADERS, frames.END_HEADERS, 9, block))
    (moved,) = peer.open(11)
    assert getattr(moved, "headers") == getattr(first[0], "headers")  # noqa: B009


def test_the_data_of_a_long_request_is_no_flood() -> None:
    peer = Peer()
    peer.open(1)
    for _ in range(_MANY):
        assert peer.say(frames.frame(frames.DATA, 0, 1, b"part of it")) == [
            DataCame(1, b"part of it", False)
        ]
