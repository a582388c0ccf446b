"""Calls begin a few in each turn of the loop, so that what runs is not held up by a burst."""

from __future__ import annotations

import asyncio
from typing import cast

import grpc

from workers.http2.calls import Call
from workers.http2.server import Http2Server


class _Call:
    """Only what the server does with one that waits to begin."""

    def __init__(self) -> None:
        self.began = False
        self.refused: grpc.StatusCode | None = None

    def run(self) -> None:
        self.began = True

    def finish(self, code: grpc.StatusCode, details: str) -> None:
        self.refused = code


async def _next_turn() -> None:
    loop = asyncio.get_running_loop()
    turn = loop.create_future()
    loop.call_soon(turn.set_result, None)
    await turn


def _waiting(server: Http2Server, count: int) -> list[_Call]:
    calls = [_Call() for _ in range(count)]
    for call in calls:
        server.start_soon(cast("Call", call))
    return calls


async def test_the_first_calls_of_a_turn_begin_at_once() -> None:
    server = Http2Server(1024)
    first, *_ = _waiting(server, 1)
    assert first.began
    calls = _waiting(server, 30)
    assert 0 < sum(call.began for call in calls) < 10


async def test_a_burst_begins_in_order_over_several_turns_of_the_loop() -> None:
    calls = _waiting(Http2Server(1024), 30)
    before, turns = 0, 0
    while before < len(calls):
        await _next_turn()
        began = [call.began for call in calls]
        assert began == sorted(began, reverse=True)
        assert sum(began) > before
        before, turns = sum(began), turns + 1
    assert turns > 2


async def test_calls_that_wait_when_the_server_stops_are_refused() -> None:
    server = Http2Server(1024)
    calls = _waiting(server, 30)
    await server.stop(0.0)
    await _next_turn()
    waited = [call for call in calls if not call.began]
    assert len(waited) > 20
    assert {call.refused for call in waited} == {grpc.StatusCode.UNAVAILABLE}
    assert not any(call.refused for call in calls if call.began)
