"""What runs an engine: commands in through a queue, events out through a callback.

An engine itself is single-threaded and knows neither threads nor time-outs; here, for one that
computes, a thread of its own is where the two worlds meet.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

from workers.engine.commands import Command
from workers.engine.events import StepEvents
from workers.parallel.errors import RanksLost

_LOG = logging.getLogger(__name__)
_STOP_TIMEOUT_S = 30.0


class Engine(Protocol):
    """What every engine offers to what runs it."""

    @property
    def idle_s(self) -> float | None:
        """How long it may be left alone: 0 not at all, None until the next command."""

    def handle(self, command: Command) -> None:
        """Apply one command; what comes of it is in the events of the next step."""

    def step(self) -> StepEvents:
        """Advance every request and return what happened since the last step."""

    def on_lost(self, callback: Callable[[RanksLost], object]) -> None:
        """Have `callback` called when the engine cannot go on, in any thread; at most once."""

    def close(self) -> None:
        """Free everything."""


class RunningEngine(Protocol):
    """An engine together with what runs it."""

    failed: Future[BaseException]

    @property
    def failure(self) -> BaseException | None:
        """What ended the engine, if something did."""

    def start(self) -> None:
        """Begin to take steps."""

    def post(self, command: Command) -> None:
        """Hand a command over; never blocks."""

    async def aclose(self) -> None:
        """Take no more steps and free everything."""


class EngineLoop:
    """Runs `engine` in a thread of its own until `stop` or until the engine raises."""

    def __init__(self, engine: Engine, emit: Callable[[StepEvents], object]) -> None:
        """`emit` is called in the engine's thread with the events of every step that had some."""
        self._engine = engine
        self._emit = emit
        # None asks the loop to end.
        self._commands: queue.SimpleQueue[Command | RanksLost | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.failed: Future[BaseException] = Future()

    @property
    def failure(self) -> BaseException | None:
        return self.failed.result() if self.failed.done() else None

    def start(self) -> None:
        # An idle engine would not notice that it cannot go on.
        self._engine.on_lost(self._commands.put)
        self._thread.start()

    def post(self, command: Command) -> None:
        """Hand a command over; never blocks, may be called from any thread."""
        self._commands.put(command)

    def stop(self) -> None:
        """End the loop after the current step and free the engine's memory and NIXL agent."""
        if self._thread.is_alive():
            self._commands.put(None)
            self._thread.join(_STOP_TIMEOUT_S)
        self._engine.close()

    async def aclose(self) -> None:
        """`stop`, for those who must not block."""
        await asyncio.to_thread(self.stop)

    def _run(self) -> None:
        try:
            while self._take_commands():
                events = self._engine.step()
                if events:
                    self._emit(events)
        except BaseException as error:  # noqa: BLE001 - whatever it was, the worker is lost
            _LOG.exception("the engine failed")
            # Whoever keeps the error must not keep what the engine was working with: tensors, and
            # the connections to other ranks.
            traceback.clear_frames(error.__traceback__)
            self.failed.set_result(error)

    def _take_commands(self) -> bool:
        """Apply all waiting commands, waiting for one as long as the engine can wait."""
        wait_s = self._engine.idle_s
        block = wait_s is None or wait_s > 0.0
        while True:
            try:
                command = self._commands.get(block, wait_s)
            except queue.Empty:
                return True
            if command is None:
                return False
            if isinstance(command, RanksLost):
                raise command
            self._engine.handle(command)
            block = False
