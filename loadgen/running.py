"""Sends conversations at their moments, or by a number of users, until all is done or told to stop.

The clock is given, and the sleep is the event loop's, so a test can run on virtual time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine, Iterable, Iterator

from loadgen.asking import Prompt, Prompts
from loadgen.clients.client import Ask, Client
from loadgen.recording import INTERRUPTED, Clock, Record, Recorder
from loadgen.sessions import Session, Turn, at_once

_WATCHDOG_S = 0.05
# So many first prompts are made before their moments.
_AHEAD = 256


class LoopDelay:
    """How late the event loop's timers come: a client that has no time left measures itself."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.delays_ms: list[float] = []

    async def watch(self) -> None:
        while True:
            due_s = self._clock() + _WATCHDOG_S
            await asyncio.sleep(_WATCHDOG_S)
            self.delays_ms.append((self._clock() - due_s) * 1e3)


class Runner:
    """Owns the tasks of one run."""

    def __init__(self, client: Client, recorder: Recorder, prompts: Prompts) -> None:
        self._client = client
        self._recorder = recorder
        self._prompts = prompts
        self._tasks: set[asyncio.Task[None]] = set()
        self._stop = asyncio.Event()
        self._idle = asyncio.Event()
        self._fault: BaseException | None = None

    def stop(self) -> None:
        """Begin no more requests, and cut off those that run."""
        self._stop.set()

    @property
    def interrupted(self) -> bool:
        return self._stop.is_set()

    async def open_loop(self, sessions: Iterable[Session], seconds: float | None = None) -> None:
        """Each conversation begins at its moment, whatever became of those before."""
        coming = iter(sessions)
        ready: deque[tuple[Session, Prompt]] = deque()
        while not self._stop.is_set():
            # Prompts are made ahead while there is time: long ones take milliseconds.
            while len(ready) < _AHEAD and not (
                ready and ready[0][0].at_s <= self._recorder.clock()
            ):
                session = next(coming, None)
                if session is None or (seconds is not None and session.at_s > seconds):
                    coming = iter(())
                    break
                ready.append((session, self._prompts.first(session)))
            if not ready:
                break
            session, first = ready.popleft()
            await self._until(session.at_s)
            if not self._stop.is_set():
                self._start(self._converse(session, first))
                # Arrivals that are overdue must not keep those that run from being read.
                await asyncio.sleep(0)
        await self._end()

    async def closed_loop(
        self, sessions: Iterable[Session], users: int, think_s: float, seconds: float | None = None
    ) -> None:
        """So many users, each with one conversation after another; `at_s` of sessions is not
        looked at."""
        shared = iter(sessions)
        await self._until(0.0)
        for _ in range(users):
            self._start(self._user(shared, think_s, seconds))
        await self._end()

    async def _user(
        self, sessions: Iterator[Session], think_s: float, seconds: float | None
    ) -> None:
        for session in sessions:
            now_s = self._recorder.clock()
            if self._stop.is_set() or (seconds is not None and now_s > seconds):
                return
            mine = at_once(session, now_s, think_s)
            await self._converse(mine, self._prompts.first(mine))
            if think_s:
                await self._until(self._recorder.clock() + think_s)

    def _start(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (fault := task.exception()) is not None:
            self._fault = self._fault or fault
            self._stop.set()
        if not self._tasks:
            self._idle.set()

    async def _until(self, at_s: float) -> None:
        """Wait for a moment of the run, or for being told to stop."""
        wait_s = at_s - self._recorder.clock()
        if wait_s > 0.0 and not self._stop.is_set():
            try:
                async with asyncio.timeout(wait_s):
                    await self._stop.wait()
            except TimeoutError:
                return

    async def _end(self) -> None:
        """Wait for all that runs; cut it off when told to stop."""
        if self._tasks:
            self._idle.clear()
            ends = [asyncio.create_task(one.wait()) for one in (self._idle, self._stop)]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for waiting in ends:
                waiting.cancel()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._fault is not None:
            raise self._fault

    async def _converse(self, session: Session, first: Prompt) -> None:
        prompt, intended_s = first, session.at_s
        record: Record | None = None
        for place, turn in enumerate(session.turns):
            if record is not None:
                intended_s = max(self._recorder.clock() + turn.wait_s, turn.not_before_s)
                prompt = self._prompts.following(session, place, prompt, record)
                record.forget_answer()
                await self._until(intended_s)
                if self._stop.is_set():
                    return
            record = self._recorder.new(
                session.number,
                place,
                turn.class_name or self._prompts.asking.class_name,
                intended_s,
                prompt.tokens,
                turn.answer_tokens,
            )
            await self._ask(prompt, turn, record)
            if not record.good:
                break
        if record is not None:
            record.forget_answer()

    async def _ask(self, prompt: Prompt, turn: Turn, record: Record) -> None:
        asking = self._prompts.asking
        ask = Ask(
            turn.answer_tokens,
            prompt.token_ids,
            prompt.messages,
            record.class_name,
            asking.temperature,
            asking.ignore_eos,
        )
        try:
            await self._client.ask(ask, record)
        except asyncio.CancelledError:
            record.end(INTERRUPTED)
            raise
        finally:
            if not record.ended:
                record.end("client fault")
            self._recorder.ended(record)
