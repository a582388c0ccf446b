"""One whole cluster on this machine: started in order, watched, and stopped without a trace.

Everything that starts leaves its stop on a stack, so a start that fails half-way is undone by the
same code as an orderly stop.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import logging
import os
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from orchestrator.autoscaler.starting import autoscaler_of
from orchestrator.errors import UserError
from orchestrator.runtime.child import Child, Interrupted, never
from orchestrator.runtime.control_thread import ControlThread
from orchestrator.runtime.joined_ray import join_ray
from orchestrator.runtime.leftovers import MARK, end_leftovers, processes_of
from orchestrator.runtime.local_ray import start_ray, stop_ray, vital_processes
from orchestrator.runtime.pools import PoolProgress, Pools
from orchestrator.runtime.ports import check_free, free_port
from orchestrator.runtime.preflight import check_model, check_vllm
from orchestrator.runtime.router_process import Endpoints, Routers, router_config
from orchestrator.runtime.run_file import RunFiles, RunRecord, log_folder, router_addresses
from orchestrator.runtime.scale_requests import serve_scale_requests
from orchestrator.runtime.scaling import PoolScaler, pool_bounds
from orchestrator.runtime.store import EmbeddedStore, check_store
from orchestrator.spec import ClusterSpec, refuse_unbuilt
from workers.pool_desk import PoolDesk

_LOG = logging.getLogger(__name__)
_POLL_S = 0.2
_GUARDIAN_READY_S = 20.0
_POOLS_READY_S = 900.0
_CONNECTED_S = 30.0
# A stop in order takes seconds; when Ray is broken it takes forever, and the sweep does it.
_POOLS_STOP_S = 30.0
_RAY_STOP_S = 20.0

Report = Callable[[str], None]


def _silent(message: str) -> None:
    """For starts that nobody watches."""


@dataclass(frozen=True, slots=True)
class StopReport:
    """What a stop found."""

    processes: int  # that belonged to the cluster when the stop began
    ended_by_force: tuple[str, ...]
    left_behind: tuple[str, ...]


class LocalCluster:
    """Starts and stops one cluster; its methods belong to the main thread.

    Ray ties its processes to the thread that started them, so `start` must not run in one that
    ends early.
    """

    def __init__(self, spec: ClusterSpec) -> None:
        refuse_unbuilt(spec)
        self.spec = spec
        self.id = secrets.token_hex(4)
        self.log_dir: Path | None = None
        self.endpoints: Endpoints | None = None
        self._undo = contextlib.ExitStack()
        self._report: Report = _silent
        self._store: EmbeddedStore | None = None
        self._routers: Routers | None = None
        self._pools: list[Pools] = []  # of each model, in the order of the spec
        self._control: ControlThread | None = None
        self._vital: list[psutil.Process] = []
        self._temp_dir: Path | None = None

    def start(self, report: Report = _silent, interrupted: Callable[[], bool] = never) -> Endpoints:
        """Start everything and wait until the router is connected to every worker.

        Raises UserError when something cannot start and Interrupted when `interrupted` says so;
        either way call `stop` afterwards.
        """
        spec = self.spec
        self._report = report
        _refuse_second(spec)
        check_free(spec.router.grpc, "gRPC", "--grpc")
        check_free(spec.router.http, "HTTP", "--http")
        for one in spec.by_model():
            check_model(one.model.path)
            check_vllm(one)
        self.log_dir = log_folder(self.id)
        os.environ[MARK] = self.id
        self._undo.callback(os.environ.pop, MARK, None)
        # Ray puts sockets here, and their paths may not be longer than about 100 characters.
        temp_dir = self._temp_dir = Path(tempfile.mkdtemp(prefix="tandem-", dir="/tmp"))
        # Registered before Ray registers its own exit, so it runs after that.
        atexit.register(shutil.rmtree, temp_dir, ignore_errors=True)
        self._start_guardian(self.log_dir, temp_dir, interrupted)
        store_url = self._start_store(self.log_dir, interrupted)
        self._start_ray(temp_dir, interrupted)
        self._start_pools(store_url, self.log_dir, interrupted)
        self._start_routers(store_url, self.log_dir, temp_dir, interrupted)
        assert self.endpoints is not None
        self._start_control(store_url)
        self._publish(self.endpoints, self.log_dir, temp_dir)
        return self.endpoints

    def _start_guardian(
        self, log_dir: Path, temp_dir: Path, interrupted: Callable[[], bool]
    ) -> None:
        guardian = Child(
            "the guardian",
            ["orchestrator.runtime.guardian"],
            json.dumps({"cluster": self.id, "temp_dir": str(temp_dir)}),
            log_dir / "guardian.log",
        )
        self._undo.callback(guardian.stop)
        guardian.wait_ready(_GUARDIAN_READY_S, interrupted)

    def _start_store(self, log_dir: Path, interrupted: Callable[[], bool]) -> str:
        if self.spec.store != "embedded":
            self._report(f"connecting to {self.spec.store}")
            check_store(self.spec.store)
            return self.spec.store
        self._report("starting the worker directory (Valkey)")
        self._store = EmbeddedStore(log_dir, interrupted)
        self._undo.callback(self._store.stop)
        return self._store.url

    def _start_ray(self, temp_dir: Path, interrupted: Callable[[], bool]) -> None:
        if interrupted():
            raise Interrupted
        if self.spec.ray.joined:
            self._report(f"joining the Ray at {self.spec.ray.address}")
            self._undo.callback(self._stop_in_ray, "leaving Ray", stop_ray, _RAY_STOP_S)
            join_ray(self.spec.ray)
            return
        self._report("starting Ray")
        self._undo.callback(self._stop_in_ray, "stopping Ray", stop_ray, _RAY_STOP_S)
        pools = [pool for one in self.spec.by_model() for pool in (one.prefill, one.decode)]
        start_ray(
            temp_dir,
            cpus=sum(p.workers.max * p.layout.ranks * p.resources.cpu for p in pools),
            gpus=any(pool.resources.gpu for pool in pools),
        )
        self._vital = vital_processes()

    def _step(self, message: str) -> None:
        self._report(message)

    def _stop_in_ray(self, message: str, stop: Callable[[], None], seconds: float) -> None:
        """A stop that needs Ray; without one the sweep at the end does the work."""
        self._report(message)
        if self._lost_of_ray() is None:
            _within(seconds, stop)

    def _lost_of_ray(self) -> psutil.Process | None:
        for process in self._vital:
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                return process
        return None

    def _start_pools(self, store_url: str, log_dir: Path, interrupted: Callable[[], bool]) -> None:
        if interrupted():
            raise Interrupted
        self._report("starting workers")
        for number, one in enumerate(self.spec.by_model()):
            prefix = f"model-{number}-" if number else ""
            pools = Pools(one, store_url, self.id, log_dir, prefix)
            self._pools.append(pools)
            self._undo.callback(self._stop_in_ray, "stopping workers", pools.stop, _POOLS_STOP_S)
        deadline = time.monotonic() + _POOLS_READY_S
        while not (progress := _together(self._pools)).complete:
            if interrupted():
                raise Interrupted
            if time.monotonic() > deadline:
                raise UserError(
                    f"only {progress.ready} of {progress.wanted} workers were ready after "
                    f"{_POOLS_READY_S:.0f} s",
                    f"see the logs in {log_dir}",
                )
            self._report(f"starting workers: {progress.ready} of {progress.wanted} ready")
            time.sleep(_POLL_S)

    def _start_routers(
        self, store_url: str, log_dir: Path, temp_dir: Path, interrupted: Callable[[], bool]
    ) -> None:
        processes = self.spec.router.processes
        self._report("starting the router" if processes == 1 else f"starting {processes} routers")
        config = router_config(self.spec, store_url, self.id)
        routers = self._routers = Routers(config, processes, log_dir, temp_dir)
        self._undo.callback(routers.stop)
        self._undo.callback(self._step, "stopping the router")
        self.endpoints = routers.wait_ready(interrupted)
        wanted = sum(
            pool.workers.min for one in self.spec.by_model() for pool in (one.prefill, one.decode)
        )
        routers.wait_connected(wanted, _CONNECTED_S, self._report, self.tend, interrupted)

    def _start_control(self, store_url: str) -> None:
        """Have pool sizes follow what is asked for, from here until the stop."""
        # Those of further models have a fixed size.
        pools = self._pools[0]
        bounds = pool_bounds(self.spec)
        assert self.log_dir is not None
        autoscaler = autoscaler_of(self.spec, self.log_dir, self._router_addresses)

        async def control() -> None:
            desk = PoolDesk(store_url, self.id)
            try:
                scaler = PoolScaler(bounds, pools.sizes, pools.resize)
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(serve_scale_requests(scaler, desk))
                    if autoscaler is not None:
                        tasks.create_task(autoscaler(scaler).run())
            finally:
                await desk.close()

        self._control = ControlThread(control)
        self._undo.callback(self._control.stop)

    def _router_addresses(self) -> list[str]:
        """Of all routers, for commands of this user."""
        assert self.endpoints is not None
        return router_addresses(self.endpoints.grpc, self.endpoints.local)

    def _publish(self, endpoints: Endpoints, log_dir: Path, temp_dir: Path) -> None:
        files = RunFiles()
        own = psutil.Process()
        record = RunRecord(
            cluster=self.id,
            pid=own.pid,
            pid_started_unix_s=own.create_time(),
            grpc=endpoints.grpc,
            http=endpoints.http,
            model=self.spec.model.name,
            log_dir=str(log_dir),
            temp_dir=str(temp_dir),
            local=endpoints.local,
        )
        self._undo.callback(files.remove, self.id)
        files.write(record)

    def tend(self) -> None:
        """Start again what can be; raise UserError when something else has ended."""
        if self._routers is not None:
            self._routers.tend()
        if (lost := self._lost_of_ray()) is not None:
            raise UserError(
                f"Ray ended: its process {lost.pid} is gone", "start again with `tandem up`"
            )
        if self._control is not None and (failure := self._control.failure) is not None:
            raise UserError(
                f"what sizes the pools has failed: {failure}", "start again with `tandem up`"
            ) from failure
        if self._store is not None and self._store.ended:
            # Workers write themselves into the empty directory at their next renewal.
            _LOG.warning("the embedded Valkey ended; starting it again")
            self._store.restart()

    def stop(self, report: Report = _silent) -> StopReport:
        """Stop everything that was started; safe at any time, and twice."""
        self._report = report
        processes = len(processes_of(self.id))
        forced: list[str] = []
        try:
            self._undo.close()
        except Exception:  # noqa: BLE001 - whatever broke, the sweep below ends what is left
            _LOG.warning("a part of the cluster did not stop in order", exc_info=True)
        finally:
            self._vital = []
            self._store = None
            self._routers = None
            self._pools.clear()
            self._control = None
            if processes:
                self._report("checking that no process is left")
                forced = end_leftovers(self.id)
            if self._temp_dir is not None:
                # Only now does nobody write there any more.
                shutil.rmtree(self._temp_dir, ignore_errors=True)
        left = tuple(f"{process.name()} (pid {process.pid})" for process in processes_of(self.id))
        return StopReport(processes, tuple(forced), left)


def _together(pools: Iterable[Pools]) -> PoolProgress:
    """How far the pools of all models are in starting."""
    parts = [one.progress() for one in pools]
    return PoolProgress(sum(one.ready for one in parts), sum(one.wanted for one in parts))


def _within(seconds: float, stop: Callable[[], None]) -> None:
    """Call `stop`, but wait no longer than this: a broken Ray answers nobody."""

    def run() -> None:
        try:
            stop()
        except Exception:  # noqa: BLE001 - the sweep ends what did not stop
            _LOG.warning("a part of the cluster did not stop in order", exc_info=True)

    worker = threading.Thread(target=run, name="stop", daemon=True)
    worker.start()
    worker.join(seconds)


def _refuse_second(spec: ClusterSpec) -> None:
    """Tell a second `up` on the same ports what is there, rather than only that they are taken."""
    port = spec.router.grpc.rpartition(":")[2]
    for record in RunFiles().running():
        if record.grpc.rpartition(":")[2] == port:
            raise UserError(
                f"a cluster is already running at {record.grpc} (pid {record.pid})",
                "stop it with `tandem down`, or choose other ports: "
                f"--grpc 127.0.0.1:{free_port()} --http 127.0.0.1:{free_port()}",
            )
