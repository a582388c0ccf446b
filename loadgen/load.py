"""One run of a load: client, watchers and runner put together around an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from dataclasses import dataclass

from loadgen.asking import Asking, Prompts
from loadgen.clients.client import Client, Endpoint
from loadgen.errors import LoadError
from loadgen.figures import Targets
from loadgen.recording import Clock, Recorder
from loadgen.results import Moment, Run
from loadgen.running import LoopDelay, Runner
from loadgen.sessions import Session
from loadgen.watching import ClusterSample, ClusterView

_TIMELINE_S = 1.0
# Before the first moment of a load: prompts are made, and the cluster's first sample comes.
_LEAD_S = 0.5


@dataclass(frozen=True, slots=True)
class Load:
    """What is to be sent: conversations at their moments, or by `users`.

    `seconds` ends the sending, not what has been sent.
    """

    sessions: Iterable[Session]
    users: int | None = None
    think_s: float = 0.0
    seconds: float | None = None


class LoadRun:
    """A run that can be stopped; `run` is called once."""

    def __init__(
        self,
        client: Client,
        load: Load,
        targets: Targets,
        *,
        description: dict[str, object] | None = None,
        cluster: AsyncGenerator[ClusterSample, None] | None = None,
        gpus: int | None = None,
        now: Clock = time.monotonic,
    ) -> None:
        """`cluster` tells what the cluster looks like meanwhile; `now` must go as fast as the
        event loop's clock, which may be coarser."""
        self._client = client
        self._load = load
        self._targets = targets
        self._description = description or {}
        self._cluster = cluster
        self._gpus = gpus
        self._now = now
        self._runner: Runner | None = None

    def stop(self) -> None:
        """Send no more, cut off what runs, and report."""
        if self._runner is not None:
            self._runner.stop()

    async def run(
        self, endpoint: Endpoint, asking: Asking, seen: Callable[[Run], None] = lambda run: None
    ) -> Run:
        """Raises LoadError when the endpoint is not as it was said to be; `seen` is called about
        once a second with the run so far."""
        now, began_s = self._now, self._now() + _LEAD_S
        clock: Clock = lambda: now() - began_s  # noqa: E731 - a clock, not a function
        recorder = Recorder(clock)
        prompts = Prompts(asking)
        runner = self._runner = Runner(self._client, recorder, prompts)
        run = Run(
            recorder,
            self._targets,
            {"model": endpoint.model, "tandem": endpoint.is_tandem},
            self._description,
            "given" if asking.source is None else asking.source.kind,
            self._gpus,
        )
        view, delay = ClusterView(), LoopDelay(clock)
        aside = [asyncio.create_task(delay.watch())]
        if self._cluster is not None:
            aside.append(asyncio.create_task(view.follow(self._cluster)))
        aside.append(asyncio.create_task(_note(run, view, seen)))
        try:
            load = self._load
            if load.users is None:
                await runner.open_loop(load.sessions, load.seconds)
            else:
                await runner.closed_loop(load.sessions, load.users, load.think_s, load.seconds)
        finally:
            for task in aside:
                task.cancel()
            await asyncio.wait(aside)
        run.timeline.append(Moment(recorder.progress(), view.latest))
        run.interrupted = runner.interrupted
        run.truncated, run.inexact = prompts.truncated, prompts.inexact
        run.loop_delays_ms = delay.delays_ms
        if not recorder.records:
            raise LoadError("no request was sent", "the load has none before --seconds ends")
        return run


async def _note(run: Run, view: ClusterView, seen: Callable[[Run], None]) -> None:
    """Rows of the timeline while it runs."""
    await asyncio.sleep(_LEAD_S)
    while True:
        run.timeline.append(Moment(run.recorder.progress(), view.latest))
        seen(run)
        await asyncio.sleep(_TIMELINE_S)


@contextlib.asynccontextmanager
async def opened(client: Client) -> AsyncIterator[Endpoint]:
    """The endpoint, until the block ends. Raises LoadError when nothing answers."""
    try:
        yield await client.open()
    finally:
        await client.close()
