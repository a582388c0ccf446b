"""An engine whose step never ends, in a process that answers: found, left, and replaced."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from orchestrator.runtime.replica import WorkerReplica
from protos.tandem.v1.common_pb2 import REASON_LENGTH
from router.config import RouterConfig
from router.dispatcher import Dispatcher
from router.requests import ClientRequest, Finished
from tests.reference_models import Shape, write_reference
from workers.config import WorkerConfig
from workers.engine.events import StepEvents
from workers.engine.loop import EngineLoop
from workers.engine.watchdog import EngineStalled
from workers.server import WorkerServer

_TOKENS = 40
_HUNG_AFTER = 20  # more than the first steps, which may take longer
_LIMIT_S = 2.0


class Fleet:
    """Two native decode workers in this process; the engine of one can be made to hang."""

    def __init__(self, servers: list[WorkerServer], dispatcher: Dispatcher) -> None:
        self.servers = servers
        self.dispatcher = dispatcher
        self.release = threading.Event()

    def hang(self, worker_id: str) -> WorkerServer:
        """Have the next step of a worker's engine stand still until `release`."""
        (server,) = [s for s in self.servers if s._config.worker_id == worker_id]
        loop = server._engine
        assert isinstance(loop, EngineLoop)
        step = loop._engine.step

        def stuck() -> StepEvents:
            self.release.wait()
            return step()

        loop._engine.step = stuck  # type: ignore[method-assign]
        return server


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    write_reference(tmp_path, Shape(pattern="M*E"), seed=3)
    async with AsyncExitStack() as stack:
        servers, records = [], []
        for worker_id in ("d1", "d2"):
            config = WorkerConfig(
                worker_id=worker_id,
                role="decode",
                model_path=str(tmp_path),
                model_name="m",
                step_limit_s=_LIMIT_S,
                cpu_kernels=False,
                draft_tokens=0,
            )
            server = WorkerServer(config)
            stack.push_async_callback(server.stop)
            servers.append(server)
            records.append(await server.start())
        dispatcher = Dispatcher(RouterConfig(str(tmp_path), "m", workers=tuple(records)))
        stack.push_async_callback(dispatcher.stop)
        made = Fleet(servers, await dispatcher.start())
        stack.callback(made.release.set)
        yield made


async def test_the_requests_of_a_hung_engine_go_on_elsewhere_and_its_replica_is_unwell(
    fleet: Fleet,
) -> None:
    dispatcher = fleet.dispatcher
    client = ClientRequest([5, 6, 7], max_tokens=_TOKENS, temperature=0.0, ignore_eos=True)
    answers: list[list[int]] = []
    hung: WorkerServer | None = None
    for hangs in (False, True):
        request = await dispatcher.prepare(client)
        ids: list[int] = []
        async with aclosing(dispatcher.generate(request)) as items:
            async for item in items:
                if isinstance(item, Finished):
                    assert item.reason == REASON_LENGTH
                    break
                ids.extend(item.token_ids)
                if hangs and hung is None and len(ids) >= _HUNG_AFTER:
                    story = dispatcher.explain(request.request_id)
                    assert story is not None
                    hung = fleet.hang(story.decode_worker)
        answers.append(ids)
    assert answers[0] == answers[1]
    assert len(answers[0]) == _TOKENS
    story = dispatcher.explain(request.request_id)
    assert story is not None
    assert story.retries == 1
    assert hung is not None
    assert story.decode_worker != hung._config.worker_id
    assert isinstance(hung.failure, EngineStalled)
    assert "step_limit_s allows 2 s" in str(hung.failure)

    replica = cast("WorkerReplica", SimpleNamespace(_server=hung))
    with pytest.raises(RuntimeError, match="has not ended"):
        await WorkerReplica.check_health(replica)
