"""What runs an engine: commands in through a queue, events out through a callback.

An engine itself is single-threaded and knows neither threads nor time-outs; here, for one that
computes, a thread of its own is where the two worlds meet.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Protocol

from workers.engine.commands import Command
from workers.engine.events import StepEvents
from workers.engine.watchdog import EngineStalled, StepWatch
from workers.parallel.errors import RanksLost

_LOG = logging.getLogger(__name__)
_STOP_TIMEOUT_S = 30.0
_STALLED_STOP_S = 0.5
_MOST_LOOK_S = 1.0


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

    def __init__(
        self,
        engine: Engine,
        emit: Callable[[StepEvents], object],
        step_limit_s: float = float("inf"),
    ) -> None:
        """`emit` is called in the engine's thread with the events of every step that had some. A
        step that takes longer than `step_limit_s` fails the engine with EngineStalled."""
        self._engine = engine
        self._watch = StepWatch(step_limit_s)
        self._ended = threading.Event()
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
        if self._watch.limit_s < float("inf"):
            threading.Thread(target=self._guard, name="engine watchdog", daemon=True).start()

    def post(self, command: Command) -> None:
        """Hand a command over; never blocks, may be called from any thread."""
        self._commands.put(command)

    def stop(self) -> None:
        """End the loop after the current step and free the engine's memory and NIXL agent.

        What a step that never ends is using cannot be freed; the end of the process does it.
        """
        self._ended.set()
        stalled = isinstance(self.failure, EngineStalled)
        if self._thread.is_alive():
            self._commands.put(None)
            self._thread.join(_STALLED_STOP_S if stalled else _STOP_TIMEOUT_S)
        if stalled and self._thread.is_alive():
            return
        self._engine.close()

    async def aclose(self) -> None:
        """`stop`, for those who must not block."""
        await asyncio.to_thread(self.stop)

    def _run(self) -> None:
        try:
            while self._take_commands() and not self.failed.done():
                events = self._engine.step()
                if self.failed.done():
                    return  # it was given up, and routers went on without it
                if events:
                    self._watch.worked += 1
                    self._emit(events)
        except BaseException as error:  # noqa: BLE001 - whatever it was, the worker is lost
            _LOG.exception("the engine failed")
            # Whoever keeps the error must not keep what the engine was working with: tensors, and
            # the connections to other ranks.
            traceback.clear_frames(error.__traceback__)
            self._fail(error)
        finally:
            self._ended.set()

    def _fail(self, error: BaseException) -> None:
        with contextlib.suppress(InvalidStateError):  # it has failed already
            self.failed.set_result(error)

    def _guard(self) -> None:
        """Watch the steps from another thread; that of the engine cannot tell that it hangs."""
        look_s = min(_MOST_LOOK_S, self._watch.limit_s / 5)
        while not self._ended.wait(look_s):
            problem = self._watch.overdue(time.monotonic())
            if problem:
                frame = sys._current_frames().get(self._thread.ident or 0)
                stack = "".join(traceback.format_stack(frame)) if frame is not None else ""
                _LOG.error("%s; it stands at\n%s", problem, stack)
                self._fail(EngineStalled(problem))
                return

    def _take_commands(self) -> bool:
        """Apply all waiting commands, waiting for one as long as the engine can wait."""
        wait_s = self._engine.idle_s
        block = wait_s is None or wait_s > 0.0
        self._watch.begin(time.monotonic())
        while True:
            try:
                if block:
                    self._watch.rest()
                command = self._commands.get(block, wait_s)
            except queue.Empty:
                return True
            finally:
                if block:
                    self._watch.begin(time.monotonic())
            if command is None:
                return False
            if isinstance(command, RanksLost):
                raise command
            self._engine.handle(command)
            block = False
