"""The load client of the router bench, against a real router: what it counts is what came."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from orchestrator.bench.router.load_client import LoadClient, Target
from orchestrator.bench.router.messages import Hold, Load
from tests.integration.router.conftest import Running, StartRouter

_ASKED = Load(prompt_tokens=8, output_tokens=6, concurrency=4, requests=60)


@pytest.fixture
async def running(start_router: StartRouter) -> Running:
    return await start_router(total_tokens=1 << 16, request_slots=64, queue_limit=64)


@pytest.fixture
async def client(running: Running) -> AsyncIterator[LoadClient]:
    made = LoadClient(Target(address=running.grpc_address, vocab_size=running.script.vocab_size))
    await made.connect()
    yield made
    made.close()


async def test_a_closed_loop_asks_so_often_and_counts_every_token(client: LoadClient) -> None:
    sample = await client.load(_ASKED)
    # Those with which the loop begins are sent before the window.
    assert (sample.sent, sample.finished, sample.failed) == (56, 60, 0)
    assert sample.tokens == 60 * _ASKED.output_tokens
    assert 60 <= sample.messages <= 60 * (_ASKED.output_tokens + 1)
    # The fake workers answer otherwise than simulated ones, and one answer in fifty is looked at.
    assert (sample.checked, sample.wrong) == (1, 1)
    assert len(sample.ttft_ms) == 3


async def test_an_open_loop_ends_after_so_many_as_well(client: LoadClient) -> None:
    open_loop = _ASKED.model_copy(update={"concurrency": None, "requests_per_s": 1000.0})
    sample = await client.load(open_loop)
    assert (sample.finished, sample.failed) == (60, 0)


async def test_what_fails_is_counted_with_the_first_error(client: LoadClient) -> None:
    sample = await client.load(_ASKED.model_copy(update={"output_tokens": 100_000}))
    assert (sample.finished, sample.failed, sample.tokens) == (0, 60, 0)
    assert "max_tokens" in sample.first_error


async def test_requests_are_held_open_until_they_are_let_go(
    start_router: StartRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    running = await start_router(
        request_slots=64, total_tokens=1 << 16, queue_limit=64, pause_after=1
    )
    client = LoadClient(Target(address=running.grpc_address, vocab_size=running.script.vocab_size))
    await client.connect()
    until = asyncio.Event()
    until.set()
    hold = Hold(prompt_tokens=8, output_tokens=6, open_requests=12)
    async with asyncio.timeout(10.0):
        await client.hold(hold, until)  # says that all are open, and lets them go
        cancelled = {(await running.script.cancels.get())[1] for _ in range(12)}
    assert len(cancelled) == 12
    assert json.loads(capsys.readouterr().out) == {"says": "begin"}
    client.close()
