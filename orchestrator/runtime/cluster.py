"""One whole cluster on this machine: started in order, watched, and stopped without a trace.

Everything that starts leaves its stop on a stack, so a start that fails half-way is undone by the
same code as an orderly stop.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from orchestrator.client import Client
from orchestrator.errors import UserError
from orchestrator.runtime.child import Child, Interrupted, never
from orchestrator.runtime.leftovers import MARK, end_leftovers, processes_of
from orchestrator.runtime.local_ray import start_ray, stop_ray
from orchestrator.runtime.pools import Pools
from orchestrator.runtime.ports import check_free, free_port
from orchestrator.runtime.preflight import check_model
from orchestrator.runtime.router_process import Endpoints, RouterProcess
from orchestrator.runtime.run_file import RunFiles, RunRecord, log_folder
from orchestrator.runtime.store import EmbeddedStore, check_store
from orchestrator.spec import ClusterSpec, refuse_unbuilt
from protos.tandem.v1 import admin_pb2

_LOG = logging.getLogger(__name__)
_POLL_S = 0.2
_GUARDIAN_READY_S = 20.0
_POOLS_READY_S = 900.0
_CONNECTED_S = 30.0

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
        self._router: RouterProcess | None = None

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
        check_model(spec.model.path)
        self.log_dir = log_folder(self.id)
        os.environ[MARK] = self.id
        self._undo.callback(os.environ.pop, MARK, None)
        # Ray puts sockets here, and their paths may not be longer than about 100 characters.
        temp_dir = Path(tempfile.mkdtemp(prefix="tandem-", dir="/tmp"))
        self._undo.callback(shutil.rmtree, temp_dir, ignore_errors=True)
        self._start_guardian(self.log_dir, temp_dir, interrupted)
        store_url = self._start_store(self.log_dir, interrupted)
        self._start_ray(temp_dir, interrupted)
        self._start_pools(store_url, self.log_dir, interrupted)
        self._start_router(store_url, self.log_dir, interrupted)
        assert self.endpoints is not None
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
        self._report("starting Ray")
        self._undo.callback(self._end_ray)
        pools = (self.spec.prefill, self.spec.decode)
        start_ray(
            temp_dir,
            cpus=sum(pool.workers.max * pool.resources.cpu for pool in pools),
            gpus=any(pool.resources.gpu for pool in pools),
        )

    def _end_ray(self) -> None:
        self._report("stopping Ray")
        stop_ray()

    def _start_pools(self, store_url: str, log_dir: Path, interrupted: Callable[[], bool]) -> None:
        if interrupted():
            raise Interrupted
        self._report("starting workers")
        pools = Pools(self.spec, store_url, self.id, log_dir)
        self._undo.callback(pools.stop, self._report)
        deadline = time.monotonic() + _POOLS_READY_S
        while not (progress := pools.progress()).complete:
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

    def _start_router(self, store_url: str, log_dir: Path, interrupted: Callable[[], bool]) -> None:
        self._report("starting the router")
        self._router = RouterProcess(self.spec, store_url, self.id, log_dir)
        self._undo.callback(self._stop_router, self._router)
        self.endpoints = self._router.wait_ready(interrupted)
        wanted = self.spec.prefill.workers.min + self.spec.decode.workers.min
        deadline = time.monotonic() + _CONNECTED_S
        with Client(self.endpoints.grpc) as client:
            while (connected := _connected(client.status())) < wanted:
                if interrupted():
                    raise Interrupted
                self.check_alive()
                if time.monotonic() > deadline:
                    raise UserError(
                        f"the router reached {connected} of {wanted} workers in "
                        f"{_CONNECTED_S:.0f} s",
                        f"see the logs in {log_dir}",
                    )
                self._report(f"connecting the router: {connected} of {wanted} workers")
                time.sleep(_POLL_S)

    def _stop_router(self, router: RouterProcess) -> None:
        self._report("stopping the router")
        router.stop()

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
        )
        self._undo.callback(files.remove, self.id)
        files.write(record)

    def check_alive(self) -> None:
        """Raise UserError when a process that nobody restarts has ended."""
        if self._router is not None and self._router.child.exit_status() is not None:
            raise self._router.child.ended_error()
        if self._store is not None and self._store.child.exit_status() is not None:
            raise self._store.child.ended_error()

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
            self._store = None
            self._router = None
            if processes:
                self._report("checking that no process is left")
                forced = end_leftovers(self.id)
        left = tuple(f"{process.name()} (pid {process.pid})" for process in processes_of(self.id))
        return StopReport(processes, tuple(forced), left)


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


def _connected(status: admin_pb2.GetStatusResponse) -> int:
    return sum(1 for worker in status.workers if worker.connected)
