"""A trace through a real router and real workers with simulated engines, and through the simulator.

Both keep the time of the same step times, so what differs is what the simulator leaves out:
sessions, event loops, timers that come late. Latencies are those of the router's own reports.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from orchestrator.runtime.child import Child
from orchestrator.runtime.router_process import Routers
from orchestrator.simulator.cluster import Cluster, WorkerKind
from orchestrator.simulator.linear_times import LinearStepTimes
from orchestrator.simulator.simulation import Simulation
from orchestrator.simulator.trace import TraceRequest
from protos.tandem.v1 import common_pb2, inference_pb2
from protos.tandem.v1.inference_pb2_grpc import InferenceStub
from router.config import PriorityClass, RouterConfig
from router.core.events import Role
from router.core.policy import ClassPolicy, Policy
from workers.config import WorkerConfig
from workers.engine.simulated.times import LinearTimes
from workers.registry import WorkerRecord

if TYPE_CHECKING:
    from protos.tandem.v1.inference_pb2_grpc import InferenceAsyncStub

_READY_S = 60.0
_NAME = "live"
_TARGET = PriorityClass("only", 5_000.0, 200.0)
# Requests share no prefix: each prompt begins with tokens of its own.
_STRIDE = 7919
_OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))


@dataclass(frozen=True, slots=True)
class LiveCluster:
    """What runs in both worlds. `times` are those of every worker."""

    model: Path
    times: LinearTimes
    prefill: int = 2
    decode: int = 2
    max_requests: int = 512
    kv_tokens: int = 4_000_000
    step_tokens: int = 4096


@dataclass(frozen=True, slots=True)
class Latency:
    """Of one request; `tokens` of its answer came, in whatever time."""

    ttft_ms: float
    itl_ms: float
    total_ms: float
    tokens: int
    local: bool


def run_simulated(cluster: LiveCluster, trace: Sequence[TraceRequest]) -> list[Latency]:
    """In the order of the trace. Raises RuntimeError when a request fails."""
    times = cluster.times
    kind = WorkerKind(
        LinearStepTimes(times),
        max_requests=cluster.max_requests,
        kv_tokens=cluster.kv_tokens,
        step_tokens=cluster.step_tokens,
        out_bytes_per_s=times.bytes_per_s,
        in_bytes_per_s=times.bytes_per_s,
        link_latency_s=times.transfer_ms / 1e3,
    )
    policy = Policy(classes=(ClassPolicy("only", _TARGET.ttft_ms / 1e3, _TARGET.itl_ms / 1e3),))
    counts: dict[Role, int] = {"prefill": cluster.prefill, "decode": cluster.decode}
    one = Cluster({"prefill": kind, "decode": kind}, counts, policy)
    rows = Simulation(one, trace).run().requests
    if rows.failures:
        raise RuntimeError(f"simulated requests failed: {dict(rows.failures)}")
    found: dict[int, Latency] = {}
    for place, number in enumerate(rows.numbers):
        found[number] = Latency(
            rows.ttft_ms[place],
            rows.itl_ms[place],
            rows.total_ms[place],
            rows.tokens[place],
            local=bool(rows.local[place]),
        )
    return [found[number] for number in range(len(trace))]


def run_live(cluster: LiveCluster, trace: Sequence[TraceRequest]) -> list[Latency]:
    """In the order of the trace, each request sent at its time. Raises UserError for a process
    that does not start, and RuntimeError when a request fails."""
    with _running(cluster) as address:
        return asyncio.run(_send_all(address, trace))


@contextlib.contextmanager
def _running(cluster: LiveCluster) -> Iterator[str]:
    """Worker and router processes; yields the router's address."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tandem-live-")))
        workers = []
        counts: dict[Role, int] = {"prefill": cluster.prefill, "decode": cluster.decode}
        for role, count in counts.items():
            for number in range(count):
                # Named as the simulator names them: equal pairs are told apart by name.
                name = f"{role}-{number}"
                config = WorkerConfig(
                    worker_id=name,
                    role=role,
                    model_path=str(cluster.model),
                    model_name=_NAME,
                    engine="simulated",
                    max_requests=cluster.max_requests,
                    kv_tokens=cluster.kv_tokens,
                    step_tokens=cluster.step_tokens,
                    max_checkpoints=0,
                    simulated=cluster.times,
                )
                child = Child(name, ["workers.server"], config.to_json(), folder / f"{name}.log")
                stack.callback(child.stop)
                workers.append(child)
        records = [WorkerRecord.from_json(child.wait_ready(_READY_S)) for child in workers]
        routers = Routers(
            RouterConfig(
                model_path=str(cluster.model),
                model_name=_NAME,
                workers=tuple(records),
                grpc="127.0.0.1:0",
                http="127.0.0.1:0",
                classes=(_TARGET,),
            ),
            1,
            folder,
            folder,
        )
        stack.callback(routers.stop)
        yield routers.wait_ready().grpc


async def _send_all(address: str, trace: Sequence[TraceRequest]) -> list[Latency]:
    async with grpc.aio.insecure_channel(address, _OPTIONS) as channel:
        stub = InferenceStub(channel)
        # The first call opens the connection, and the first step of anything is slow.
        await _send(stub, 0, TraceRequest(0.0, 8, 2))
        began_s = time.monotonic()
        tasks = []
        for number, request in enumerate(trace, 1):
            wait_s = began_s + request.at_s - time.monotonic()
            if wait_s > 0.0:
                await asyncio.sleep(wait_s)
            tasks.append(asyncio.create_task(_send(stub, number, request)))
        return list(await asyncio.gather(*tasks))


async def _send(stub: InferenceAsyncStub, number: int, request: TraceRequest) -> Latency:
    prompt = [(number * _STRIDE + place) % 2000 for place in range(request.prompt_tokens)]
    message = inference_pb2.GenerateRequest(
        token_ids=inference_pb2.TokenIds(ids=prompt),
        sampling=inference_pb2.ClientSampling(
            max_tokens=request.answer_tokens, temperature=0.0, ignore_eos=True
        ),
    )
    tokens = 0
    async for response in stub.Generate(message):
        if response.HasField("finished"):
            finished = response.finished
            if finished.reason != common_pb2.REASON_LENGTH:
                reason = common_pb2.ReasonCode.Name(finished.reason)
                raise RuntimeError(f"request {number} ended with {reason}")
            report = finished.report
            return Latency(
                report.ttft_ms,
                report.mean_itl_ms,
                report.total_ms,
                tokens,
                local=not report.HasField("handoff"),
            )
        tokens += len(response.delta.token_ids)
    raise RuntimeError(f"request {number} has no end")
