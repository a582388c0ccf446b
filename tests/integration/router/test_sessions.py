"""What a worker says at once may be passed on over several turns of the loop: nothing is lost."""

from __future__ import annotations

import asyncio

import pytest

from orchestrator.bench.router.load_client import LoadClient, Target
from orchestrator.bench.router.messages import Load, Sample
from router import sessions
from tests.integration.router.conftest import Running, StartRouter

_LOAD = Load(prompt_tokens=8, output_tokens=6, concurrency=16, requests=48)


@pytest.fixture(autouse=True)
def one_event_each_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_TURN_S", -1.0)


async def _load(running: Running) -> Sample:
    client = LoadClient(Target(address=running.grpc_address, vocab_size=running.script.vocab_size))
    await client.connect()
    try:
        return await client.load(_LOAD)
    finally:
        client.close()


async def test_answers_are_whole(start_router: StartRouter) -> None:
    running = await start_router(request_slots=16)
    sample = await _load(running)
    assert (sample.finished, sample.failed, sample.tokens) == (48, 0, 48 * 6)


async def test_what_a_lost_worker_said_before_counts(start_router: StartRouter) -> None:
    running = await start_router(decode=2, request_slots=16, pause_after=3)
    loading = asyncio.create_task(_load(running))
    await asyncio.wait_for(running.script.paused.wait(), 10.0)
    await running.decode[0].kill()
    running.script.go_on.set()
    sample = await asyncio.wait_for(loading, 30.0)
    assert (sample.finished, sample.failed, sample.tokens) == (48, 0, 48 * 6)
