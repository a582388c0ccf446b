"""The processes of the router bench: simulated workers, routers, and the load client."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter

from orchestrator.bench.router.messages import Hold, Load, Sample, Window
from orchestrator.bench.router.readings import ProcessReading, read_process
from orchestrator.bench.router.settings import RouterBenchSettings
from orchestrator.runtime.child import Child
from orchestrator.runtime.router_process import Routers
from router.config import PriorityClass, RouterConfig
from workers.config import WorkerConfig
from workers.engine.simulated.times import LinearTimes
from workers.registry import Role, WorkerRecord

_READY_S = 60.0
_PATIENCE_S = 900.0
_NAME = "bench"
_MOST_REQUESTS = 32_768
# The load is to saturate the router, not to be told that it would wait; and steps that are late
# because the machine is full are not to keep it at the workers' targets instead.
_PATIENT = PriorityClass("patient", ttft_ms=600_000.0, itl_ms=10_000.0)


class _Client(Child):
    """The load client's process."""

    def ask(self, order: Load | Hold) -> None:
        """Send an order; its answers come by `window` and `sample`."""
        assert self._process.stdin is not None
        self._process.stdin.write(order.model_dump_json() + "\n")
        self._process.stdin.flush()

    def release(self) -> None:
        """End a Hold."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def window(self) -> None:
        """Wait until measuring begins."""
        Window.model_validate_json(self.wait_ready(_PATIENCE_S))

    def sample(self) -> Sample:
        """Wait for what came back."""
        return TypeAdapter(Sample).validate_json(self.wait_ready(_PATIENCE_S))


@dataclass(frozen=True, slots=True)
class Rig:
    """Everything that runs in one phase, or in several."""

    client: _Client
    routers: Routers
    workers: tuple[Child, ...]
    http: str
    own_cores: bool  # each router has a core, and everybody else the others

    def router_reading(self) -> ProcessReading:
        """Processor time and memory of all routers together."""
        readings = [read_process(pid) for pid in self.routers.pids]
        return ProcessReading(
            sum(reading.cpu_s for reading in readings),
            sum(reading.rss_bytes for reading in readings),
        )

    def worker_cpu_s(self) -> float:
        """Processor time of all workers together."""
        return sum(read_process(worker.pid).cpu_s for worker in self.workers)

    def own_cpu_s(self) -> float:
        """Processor time of every process of the rig."""
        client_s = read_process(self.client.pid).cpu_s
        return client_s + self.router_reading().cpu_s + self.worker_cpu_s()


@contextlib.contextmanager
def running_rig(settings: RouterBenchSettings, times: LinearTimes) -> Iterator[Rig]:
    """Start everything; stops it at the end. Raises UserError for what does not start."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tandem-bench-")))
        workers, records = [], []
        roles: tuple[Role, ...] = ("prefill", "decode")
        for role in roles:
            config = WorkerConfig(
                worker_id=role,
                role=role,
                model_path=str(settings.model),
                model_name=_NAME,
                engine="simulated",
                max_requests=_MOST_REQUESTS,
                kv_tokens=_MOST_REQUESTS * (settings.prompt_tokens + settings.output_tokens),
                step_tokens=1 << 20,
                max_checkpoints=0,
                simulated=replace(times, step_ms=_PREFILL_MS) if role == "prefill" else times,
            )
            worker = Child(role, ["workers.server"], config.to_json(), folder / f"{role}.log")
            stack.callback(worker.stop)
            workers.append(worker)
        for worker in workers:
            records.append(WorkerRecord.from_json(worker.wait_ready(_READY_S)))
        routers = Routers(
            RouterConfig(
                model_path=str(settings.model),
                model_name=_NAME,
                workers=tuple(records),
                grpc="127.0.0.1:0",
                http="127.0.0.1:0",
                classes=(_PATIENT,),
                queue_limit=_MOST_REQUESTS,
                shares_ports=settings.routers > 1,
            ),
            settings.routers,
            folder,
            folder,
        )
        stack.callback(routers.stop)
        endpoints = routers.wait_ready()
        target = {"address": endpoints.grpc, "vocab_size": records[0].vocab_size}
        client = _Client(
            "the load client",
            ["orchestrator.bench.router.load_client"],
            json.dumps(target),
            folder / "client.log",
        )
        stack.callback(client.stop)
        own_cores = _give_cores(routers.pids, [client.pid, *(worker.pid for worker in workers)])
        yield Rig(client, routers, tuple(workers), endpoints.http, own_cores)


def _give_cores(routers: Collection[int], others: Collection[int]) -> bool:
    """Give each router a core of its own and everybody else the others, where there are enough;
    whether it was done.

    A router that shares its core waits for whoever has it, up to a tick of the kernel each time,
    and what is then measured is the load client.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) <= len(routers):
        return False
    for pid, core in zip(routers, cores, strict=False):
        _bind(pid, {core})
    for pid in others:
        _bind(pid, set(cores[len(routers) :]))
    return True


def _bind(pid: int, cores: Collection[int]) -> None:
    """Have all threads of a process run on these cores; those to come inherit it."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setaffinity(int(thread.name), cores)


# A prompt's step: short, so that what is seen of a first token is the router's.
_PREFILL_MS = 0.5
