"""Runs a vLLM engine on the worker's event loop, with timers for its clock.

vLLM computes in processes of its own, so nothing here takes long and no thread is needed. All that
one turn of the event loop brings leaves as one message.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Protocol

from workers.engine.commands import Command
from workers.engine.events import StepEvents
from workers.engine.vllm.core import CacheNews, CoreStep
from workers.engine.vllm.engine import VllmEngine
from workers.engine.watchdog import EngineStalled, StepWatch
from workers.handoff.notifications import Notifications

_LOG = logging.getLogger(__name__)
_MOST_LOOK_S = 1.0


class CoreFeed(Protocol):
    """What comes out of vLLM. Both raise when vLLM has ended."""

    async def next_step(self) -> CoreStep: ...

    async def next_news(self) -> list[CacheNews]: ...

    async def wait_failed(self) -> BaseException:
        """Wait until an order could not be carried out."""

    async def aclose(self) -> None:
        """End vLLM's processes."""


class VllmLoop:
    """Connects vLLM, other workers and the worker's sessions to the rules."""

    def __init__(
        self,
        engine: VllmEngine,
        feed: CoreFeed,
        notifications: Notifications,
        emit: Callable[[StepEvents], object],
        step_limit_s: float = float("inf"),
    ) -> None:
        """`emit` is called with what happened, when something did. When vLLM has work and says
        nothing for longer than `step_limit_s`, it has failed with EngineStalled."""
        self._engine = engine
        self._feed = feed
        self._notifications = notifications
        notifications.receive = self._arrived
        self._emit = emit
        self._due: asyncio.Handle | None = None
        self._lease: asyncio.TimerHandle | None = None
        # It says something with every step, be it only how full its memory is.
        self._steps = StepWatch(step_limit_s)
        self._tasks: list[asyncio.Task[None]] = []
        self.failed: Future[BaseException] = Future()

    @property
    def failure(self) -> BaseException | None:
        return self.failed.result() if self.failed.done() else None

    def start(self) -> None:
        for work in (self._take_steps(), self._take_news(), self._watch(), self._watch_steps()):
            self._tasks.append(asyncio.create_task(self._guarded(work)))
        self._wake()

    def post(self, command: Command) -> None:
        self._engine.handle(command)
        self._wake()

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for timer in (self._due, self._lease):
            if timer is not None:
                timer.cancel()
        await self._notifications.close()
        await self._feed.aclose()

    def _arrived(self, message: bytes) -> None:
        self._engine.arrived(message)
        self._wake()

    async def _guarded(self, work: Coroutine[object, object, None]) -> None:
        try:
            await work
        except Exception as error:  # noqa: BLE001 - whatever it was, the worker is lost
            if not self.failed.done():
                _LOG.exception("vLLM failed")
                self.failed.set_result(error)

    async def _take_steps(self) -> None:
        while True:
            self._engine.stepped(await self._feed.next_step())
            self._steps.worked += 1
            self._steps.rest()
            self._wake()

    async def _take_news(self) -> None:
        while True:
            for news in await self._feed.next_news():
                self._engine.cached(news)
            self._wake()

    async def _watch(self) -> None:
        raise await self._feed.wait_failed()

    async def _watch_steps(self) -> None:
        while True:
            await asyncio.sleep(min(_MOST_LOOK_S, self._steps.limit_s / 5))
            if problem := self._steps.overdue(time.monotonic()):
                raise EngineStalled(problem)

    def _wake(self) -> None:
        """Let out what happened, at the end of this turn of the loop."""
        if self._due is None:
            self._due = asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._due = None
        events = self._engine.take_events()
        if events:
            self._emit(events)
        if not self._engine.working:
            self._steps.rest()
        elif self._steps.began_s is None:
            self._steps.begin(time.monotonic())
        idle_s = self._engine.idle_s
        if idle_s is not None and self._lease is None:
            self._lease = asyncio.get_running_loop().call_later(idle_s, self._lease_over)

    def _lease_over(self) -> None:
        self._lease = None
        self._flush()
