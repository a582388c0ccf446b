"""A whole serving plane in processes of its own, with everything in reach that can go wrong.

Workers register under a name of their own; the rig passes their records on under the cluster's,
with the address of a proxy, so that a session can be cut or made to hang while both ends live.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import psutil
from redis.exceptions import RedisError

from orchestrator.runtime.child import Child
from orchestrator.runtime.store import EmbeddedStore
from protos.tandem.v1 import admin_pb2, admin_pb2_grpc, inference_pb2_grpc
from router.config import RouterConfig
from tests.chaos.proxy import Proxy
from workers.config import WorkerConfig
from workers.registry import Role, WorkerDirectory

READY_S = 120.0
_HIDDEN, _CLUSTER = "hidden", "chaos"
_MIRROR_S = 0.1


@dataclass(slots=True, eq=False)
class Worker:
    """One worker process."""

    role: Role
    child: Child
    worker_id: str
    troubled: bool = False  # it does not answer, or nobody hears it

    @property
    def alive(self) -> bool:
        return self.child.exit_status() is None

    def kill(self) -> None:
        os.kill(self.child.pid, signal.SIGKILL)

    def stall(self) -> None:
        os.kill(self.child.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.child.pid, signal.SIGCONT)

    def stop(self) -> None:
        self.go_on()
        self.child.stop()


class Router:
    """One router process with a channel to it."""

    def __init__(self, config: RouterConfig, folder: Path, number: int) -> None:
        self.log = folder / f"router-{number}.events"
        own = replace(config, event_log=str(self.log))
        self.child = Child(
            f"router {number}", ["router"], own.to_json(), folder / f"router-{number}.log"
        )
        self._channel: grpc.aio.Channel | None = None

    async def start(self) -> None:
        ready = json.loads(await asyncio.to_thread(self.child.wait_ready, READY_S))
        # A client that does not wait long to connect again.
        self._channel = grpc.aio.insecure_channel(ready["grpc"])
        self.inference = inference_pb2_grpc.InferenceStub(self._channel)
        self.admin = admin_pb2_grpc.AdminStub(self._channel)

    async def status_when(
        self, holds: Callable[[admin_pb2.GetStatusResponse], bool], timeout_s: float = READY_S
    ) -> admin_pb2.GetStatusResponse:
        """Wait until the status is as it should be; raises TimeoutError with the last one."""
        last = admin_pb2.GetStatusResponse()
        try:
            async with asyncio.timeout(timeout_s):
                async for last in self.admin.Watch(admin_pb2.WatchRequest(period_ms=100)):
                    if holds(last):
                        return last
        except TimeoutError:
            raise TimeoutError(f"the router still says: {last}") from None
        raise AssertionError("the router stopped watching")

    def kill(self) -> None:
        os.kill(self.child.pid, signal.SIGKILL)

    async def stop(self) -> None:
        if self._channel is not None:
            await self._channel.close(None)
        await asyncio.to_thread(self.child.stop)


class Rig:
    """Everything that runs; use `running_rig`."""

    def __init__(self, folder: Path, template: WorkerConfig) -> None:
        self.folder = folder
        self._template = template
        self.store = EmbeddedStore(folder)
        self._hidden = WorkerDirectory(self.store.url, _HIDDEN)
        self._shown = WorkerDirectory(self.store.url, _CLUSTER)
        self.workers: list[Worker] = []
        self.routers: list[Router] = []
        self._proxies: dict[str, Proxy] = {}
        self._numbers = 0
        self._closing = False
        self._mirror = asyncio.create_task(self._pass_on())

    async def start_worker(self, role: Role) -> Worker:
        """Start a worker and wait until it serves."""
        self._numbers += 1
        worker_id = f"{role}-{self._numbers}"
        config = replace(
            self._template,
            worker_id=worker_id,
            role=role,
            store_url=self.store.url,
            cluster=_HIDDEN,
        )
        log = self.folder / f"{worker_id}.log"
        child = Child(worker_id, ["workers.server"], config.to_json(), log)
        worker = Worker(role, child, worker_id)
        self.workers.append(worker)
        await asyncio.to_thread(child.wait_ready, READY_S)
        return worker

    async def start_router(self, config: RouterConfig) -> Router:
        router = Router(
            replace(config, store_url=self.store.url, cluster=_CLUSTER),
            self.folder,
            len(self.routers),
        )
        self.routers.append(router)
        await router.start()
        return router

    async def connected(self, workers: int) -> None:
        """Wait until every router has sessions with so many workers."""
        for router in self.routers:
            await router.status_when(lambda s: sum(w.connected for w in s.workers) == workers)

    def living(self, role: Role | None = None) -> list[Worker]:
        return [w for w in self.workers if w.alive and role in (None, w.role)]

    def proxy(self, worker: Worker) -> Proxy | None:
        """None as long as no router could know of the worker."""
        return self._proxies.get(worker.worker_id)

    async def restart_store(self) -> None:
        """Kill Valkey, and start an empty one at the same address."""
        (server,) = psutil.Process(self.store.pid).children()
        server.kill()
        await asyncio.to_thread(self.store.restart)

    async def close(self) -> None:
        # Said as well, because a cancel that meets an answer of the store's client may be lost.
        self._closing = True
        self._mirror.cancel()
        await asyncio.wait([self._mirror])
        for router in self.routers:
            await router.stop()
        for worker in self.workers:
            await asyncio.to_thread(worker.stop)
        for proxy in self._proxies.values():
            await proxy.close()
        await self._hidden.close()
        await self._shown.close()
        await asyncio.to_thread(self.store.stop)

    async def _pass_on(self) -> None:
        while not self._closing:
            with contextlib.suppress(RedisError, OSError):
                for record, lease_s in (await self._hidden.snapshot()).values():
                    proxy = self._proxies.get(record.worker_id)
                    if proxy is None:
                        proxy = self._proxies[record.worker_id] = Proxy(record.address)
                        await proxy.start()
                    shown = replace(record, address=proxy.address)
                    await self._shown.renew(shown, max(1, int(lease_s * 1000)))
            await asyncio.sleep(_MIRROR_S)


@contextlib.asynccontextmanager
async def running_rig(
    folder: Path,
    template: WorkerConfig,
    router: RouterConfig,
    workers: Mapping[Role, int],
    routers: int,
) -> AsyncIterator[Rig]:
    """Start so many of each and wait until all of them know each other."""
    rig = Rig(folder, template)
    try:
        await asyncio.gather(
            *(rig.start_worker(role) for role, count in workers.items() for _ in range(count))
        )
        await asyncio.gather(*(rig.start_router(router) for _ in range(routers)))
        await rig.connected(sum(workers.values()))
        yield rig
    finally:
        await rig.close()
