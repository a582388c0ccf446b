"""A replica's worker in a process of its own, under an interpreter of its own."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import psutil
import pytest

from orchestrator.errors import UserError
from orchestrator.runtime.worker_child import WorkerChild
from protos.tandem.v1.common_pb2 import REASON_LENGTH
from router.config import RouterConfig
from router.dispatcher import Dispatcher
from router.requests import ClientRequest, Delta, Finished
from workers.config import WorkerConfig
from workers.engine.simulated.times import LinearTimes
from workers.registry import WorkerRecord

_TIMEOUT_S = 60.0


@pytest.fixture
def config(tmp_path: Path) -> WorkerConfig:
    limits = {"max_position_embeddings": 4096, "vocab_size": 100}
    (tmp_path / "config.json").write_text(json.dumps(limits))
    return WorkerConfig(
        worker_id="w",
        role="decode",
        model_path=str(tmp_path),
        model_name="m",
        engine="simulated",
        simulated=LinearTimes(step_ms=5.0),
        interpreter=sys.executable,
    )


@asynccontextmanager
async def _running(config: WorkerConfig) -> AsyncIterator[tuple[WorkerChild, WorkerRecord]]:
    child = WorkerChild(config, Path(config.model_path))
    try:
        yield child, await child.start()
    finally:
        await child.stop(10.0)


async def test_it_finishes_what_runs_before_it_ends(config: WorkerConfig) -> None:
    async with _running(config) as (child, record):
        dispatcher = Dispatcher(
            RouterConfig(model_path=config.model_path, model_name="m", workers=(record,))
        )
        await dispatcher.start(_TIMEOUT_S)
        client = ClientRequest([5, 6, 7], max_tokens=60, temperature=0.0, ignore_eos=True)
        tokens, draining = 0, None
        async with aclosing(dispatcher.generate(await dispatcher.prepare(client))) as items:
            async for item in items:
                if isinstance(item, Delta):
                    tokens += len(item.token_ids)
                    if draining is None:
                        draining = asyncio.create_task(child.drain(_TIMEOUT_S))
                elif isinstance(item, Finished):
                    assert (item.reason, tokens) == (REASON_LENGTH, 60)
        assert draining is not None
        assert await draining
        assert child.failure is None, "it was asked to end"
        await dispatcher.stop()


async def test_a_worker_that_dies_is_a_failure_of_its_replica(config: WorkerConfig) -> None:
    async with _running(config) as (child, record):
        assert _failure(child) is None
        psutil.Process(record.pid).kill()
        async with asyncio.timeout(_TIMEOUT_S):
            while _failure(child) is None:  # noqa: ASYNC110 - the end of a process sets no event
                await asyncio.sleep(0.01)
        assert "status -9" in str(_failure(child))


def _failure(child: WorkerChild) -> BaseException | None:
    return child.failure


async def test_an_interpreter_that_is_not_there_is_named(
    config: WorkerConfig, tmp_path: Path
) -> None:
    python = str(tmp_path / "bin" / "python")
    absent = WorkerConfig.from_json(
        config.to_json().replace(json.dumps(sys.executable), json.dumps(python))
    )
    with pytest.raises(UserError, match=r"cannot start .*bin/python"):
        await WorkerChild(absent, tmp_path).start()
