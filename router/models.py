"""The models of one router. Each has a dispatcher, and thereby a queue, a policy and workers, of
its own: nothing is shared but the addresses and the processor."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

from protos.tandem.v1 import common_pb2
from router.core.explain import Explanation
from router.dispatcher import Dispatcher
from router.errors import refusal
from router.metrics import labelled
from router.status import RouterStatus


class Models:
    """Finds the dispatcher of a model, of a request or of a worker. The first is the default."""

    def __init__(self, dispatchers: Sequence[Dispatcher]) -> None:
        self._by_name = {one.model.name: one for one in dispatchers}
        self.first = dispatchers[0]

    def __iter__(self) -> Iterator[Dispatcher]:
        return iter(self._by_name.values())

    def of(self, name: str) -> Dispatcher:
        """Of the model of that name; the empty name means the first. Raises RequestError."""
        if not name:
            return self.first
        found = self._by_name.get(name)
        if found is None:
            served = " or ".join(map(repr, self._by_name))
            raise refusal(
                "model",
                f"{name!r} is not served here; use {served}",
                common_pb2.REASON_UNKNOWN_MODEL,
            )
        return found

    def of_worker(self, worker_id: str) -> Dispatcher:
        """The one with a session with that worker; the first where there is none."""
        return next((one for one in self if one.worker(worker_id) is not None), self.first)

    @property
    def ready(self) -> bool:
        """Whether a request for some model could be served."""
        return any(one.ready for one in self)

    def cancel(self, request_id: str) -> bool:
        """End a request, whatever its model; False when it is unknown or has ended."""
        return any(one.cancel(request_id) for one in self)

    def explain(self, request_id: str) -> Explanation | None:
        """What happened to a request, whatever its model."""
        found = (one.explain(request_id) for one in self)
        return next((explanation for explanation in found if explanation is not None), None)

    async def workers_changed(self, timeout_s: float) -> None:
        """Wait until a worker of any model comes, goes, is empty or has flipped."""
        waits = [asyncio.ensure_future(one.workers_changed(timeout_s)) for one in self]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def statuses(self) -> list[RouterStatus]:
        """Of each model, the first one's first."""
        return [await one.status() for one in self]

    async def metrics_text(self) -> str:
        """Everything that is counted; with a label `model` where there are several."""
        texts = {one.model.name: await one.metrics_text() for one in self}
        return labelled("model", texts) if len(texts) > 1 else texts[self.first.model.name]
