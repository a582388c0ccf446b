"""The event loop around a vLLM engine, with a vLLM that says what a test wants."""

from __future__ import annotations

import asyncio

from tests.unit.engine.vllm.scripted_core import Worker, item
from workers.engine.commands import Prefill
from workers.engine.events import StepEvents
from workers.engine.vllm.core import CacheNews, CoreStep
from workers.engine.vllm.loop import VllmLoop
from workers.engine.watchdog import EngineStalled
from workers.handoff.notifications import Notifications

_PATIENCE_S = 30.0


class _Feed:
    """Steps as they are put in."""

    def __init__(self) -> None:
        self.steps: asyncio.Queue[CoreStep] = asyncio.Queue()

    async def next_step(self) -> CoreStep:
        return await self.steps.get()

    async def next_news(self) -> list[CacheNews]:
        await asyncio.Event().wait()
        return []

    async def wait_failed(self) -> BaseException:
        await asyncio.Event().wait()
        return RuntimeError()

    async def aclose(self) -> None:
        """Nothing to end."""


async def test_vllm_that_has_work_and_takes_no_step_has_failed() -> None:
    feed, said = _Feed(), list[StepEvents]()
    engine = Worker("d", []).engine
    loop = VllmLoop(engine, feed, await Notifications.open("127.0.0.1"), said.append, 0.01)
    loop.start()
    loop.post(Prefill(item(1), (1, 2, 3), None))
    failure = await asyncio.wait_for(asyncio.wrap_future(loop.failed), _PATIENCE_S)
    assert isinstance(failure, EngineStalled)
    assert "step_limit_s" in str(failure)
    await loop.aclose()
