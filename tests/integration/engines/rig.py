"""A prefill worker and two decode workers of one engine, as processes, behind a router.

Engines that start slowly are started once for all tests: a test says what it needs, and what an
earlier one has killed is started again only then.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

from orchestrator.runtime.child import Child
from protos.tandem.v1.inference_pb2 import RequestReport
from router.config import RouterConfig
from router.core.reasons import Reason
from router.dispatcher import Dispatcher
from router.requests import ClientRequest, Delta, Finished
from workers.config import WorkerConfig
from workers.registry import Role, WorkerRecord

READY_S = 900.0
PATIENCE_S = 240.0
SLOTS = 8
_WANTED: tuple[tuple[str, Role], ...] = (("p", "prefill"), ("d1", "decode"), ("d2", "decode"))


class Answer:
    """What one request gave."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.reason: Reason | None = None
        self.report = RequestReport()
        self.some = asyncio.Event()  # the first tokens have come


class Rig:
    """Worker processes of one engine. `template` is the config of each but for id and role."""

    def __init__(self, template: WorkerConfig, folder: Path) -> None:
        self.template = template
        self._folder = folder
        self._running: dict[str, tuple[Child, WorkerRecord]] = {}
        self._started = 0

    def ensure(self) -> dict[str, WorkerRecord]:
        """Have all workers run; the records by name."""
        new: dict[str, Child] = {}
        for name, role in _WANTED:
            running = self._running.get(name)
            if running is not None and running[0].exit_status() is None:
                continue
            if running is not None:
                running[0].stop()
            new[name] = self._start(name, replace(self.template, role=role))
        for name, child in new.items():
            self._running[name] = child, WorkerRecord.from_json(child.wait_ready(READY_S))
        return {name: record for name, (_, record) in self._running.items()}

    def _start(self, name: str, config: WorkerConfig) -> Child:
        """Under an id that no worker had before."""
        self._started += 1
        worker_id = f"{name}-{self._started}"
        text = replace(config, worker_id=worker_id).to_json()
        log = self._folder / f"{worker_id}.log"
        return Child(worker_id, ["workers.server"], text, log, config.interpreter)

    @contextlib.contextmanager
    def another(self, name: str, config: WorkerConfig) -> Iterator[WorkerRecord]:
        """One more worker, for one test."""
        child = self._start(name, config)
        try:
            yield WorkerRecord.from_json(child.wait_ready(READY_S))
        finally:
            child.stop()

    def child(self, name: str) -> Child:
        return self._running[name][0]

    def stop(self) -> None:
        for child, _ in self._running.values():
            child.stop()

    @asynccontextmanager
    async def router(
        self, *names: str, more: Sequence[WorkerRecord] = ()
    ) -> AsyncIterator[Dispatcher]:
        """A router that knows these workers."""
        records = self.ensure()
        dispatcher = Dispatcher(
            RouterConfig(
                model_path=self.template.model_path,
                model_name=self.template.model_name,
                workers=(*(records[name] for name in names), *more),
                max_retries=10,
                # A first hand-off joins two processes, which takes long on a machine that is busy.
                silence_s=PATIENCE_S,
            ),
            validate=True,
        )
        await dispatcher.start(READY_S)
        try:
            yield dispatcher
        finally:
            await dispatcher.stop()


async def ask(dispatcher: Dispatcher, request: ClientRequest, answer: Answer) -> Answer:
    """Run a request to its end."""
    async with (
        asyncio.timeout(PATIENCE_S),
        aclosing(dispatcher.generate(await dispatcher.prepare(request))) as items,
    ):
        async for item in items:
            if isinstance(item, Delta):
                answer.token_ids.extend(item.token_ids)
                answer.some.set()
            elif isinstance(item, Finished):
                answer.reason, answer.report = item.reason, item.report
                answer.some.set()
    return answer


async def ask_all(dispatcher: Dispatcher, requests: Sequence[ClientRequest]) -> list[Answer]:
    """Run requests at the same time."""
    return await asyncio.gather(*(ask(dispatcher, request, Answer()) for request in requests))


async def all_free(dispatcher: Dispatcher, workers: int) -> None:
    """Wait until so many workers hold nothing for anybody."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            status = await dispatcher.status()
            views = [worker.view for worker in status.workers if worker.view is not None]
            if len(views) == workers and all(
                not view.holds and view.free_slots == SLOTS for view in views
            ):
                return
            with contextlib.suppress(TimeoutError):
                await dispatcher.workers_changed(0.1)
