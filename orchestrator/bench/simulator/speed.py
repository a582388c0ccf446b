"""Simulated requests per second of one core, at three sizes of cluster.

The traffic is synthetic: prompts and answers are log-normal with the moments of Azure's 2023
conversation trace, arrivals are a Poisson process at a share of what the cluster can do.
"""

from __future__ import annotations

import gc
import math
import random
import time
from dataclasses import dataclass

from orchestrator.simulator.building import Machines, Options
from orchestrator.simulator.cluster import Cluster
from orchestrator.simulator.garbage import swept_by_hand
from orchestrator.simulator.simulation import Simulation
from orchestrator.simulator.trace import TraceRequest
from router.core.events import Event, Role
from router.core.lifecycle import Lifecycle
from router.core.policy import ClassPolicy, Policy
from workers.perf.layouts import Layout

# Of ten GPUs: three prefill workers of two, one decode worker of four.
_GPUS, _PREFILL, _DECODE = 10, 3, 1
_MODEL, _HARDWARE = "llama-3.1-70b", "h200"
_SLOTS = 256
_LOAD = 0.7
# Mean and deviation of logarithms, and the longest, of azure_2023_conv.csv.
_PROMPTS = (6.633, 0.985, 14_050)
_ANSWERS = (5.019, 0.859, 1_000)


@dataclass(frozen=True, slots=True)
class Speed:
    """One size. `cpu_s` is processor time of the one thread there is, starting up included."""

    gpus: int
    workers: int
    requests: int
    cpu_s: float
    wall_s: float
    events: int
    failed: int
    virtual_s: float
    decode_busy_share: float

    @property
    def requests_per_s(self) -> float:
        return self.requests / self.cpu_s

    @property
    def us_per_request(self) -> float:
        return self.cpu_s / self.requests * 1e6


def bench_cluster(gpus: int) -> Cluster:
    """Llama 3.1 70B in FP8 on H200, in tens of GPUs."""
    machines = Machines.of(_MODEL, _HARDWARE, "fp8", None, Options(prefix_cache=False))
    tens = gpus // _GPUS
    layouts: dict[Role, Layout] = {
        "prefill": Layout(tpa=2, tpf=2),
        "decode": Layout(tpa=4, tpf=4),
    }
    kinds = {
        role: machines.kind(
            layout, slots=_SLOTS, step_tokens=8192, draft_tokens=0, acceptance_length=1.0
        )
        for role, layout in layouts.items()
    }
    policy = Policy(classes=(ClassPolicy("only", 2.0, 0.05),), queue_limit=1_000_000)
    return Cluster(
        kinds,
        {"prefill": _PREFILL * tens, "decode": _DECODE * tens},
        policy,
    )


def bench_traffic(cluster: Cluster, count: int, seed: int = 0) -> list[TraceRequest]:
    """So many requests, at a share of what prefill or decode can do, whichever is less."""
    rng = random.Random(seed)
    lengths = [(_length(rng, *_PROMPTS), _length(rng, *_ANSWERS)) for _ in range(count)]
    prompt = sum(one for one, _ in lengths) / count
    answer = sum(one for _, one in lengths) / count
    prefill, decode = cluster.kinds["prefill"], cluster.kinds["decode"]
    read_s = prefill.times.step_s(0, 0.0, prompt, prompt / 2.0)
    context = _SLOTS * (prompt + answer / 2.0)
    step_s = decode.times.step_s(_SLOTS, context)
    rate = _LOAD * min(
        cluster.counts["prefill"] / read_s,
        cluster.counts["decode"] * _SLOTS / (step_s * answer),
    )
    now_s, out = 0.0, []
    for one, other in lengths:
        now_s += rng.expovariate(rate)
        out.append(TraceRequest(now_s, one, other))
    return out


def measure(gpus: int, count: int, rounds: int) -> Speed:
    """The median of some runs."""
    cluster = bench_cluster(gpus)
    trace = bench_traffic(cluster, count)
    runs = sorted((_run(cluster, trace) for _ in range(rounds)), key=lambda run: run.cpu_s)
    return runs[(len(runs) - 1) // 2]


def _run(cluster: Cluster, trace: list[TraceRequest]) -> Speed:
    gc.collect()
    began_s, began_wall_s = time.process_time(), time.perf_counter()
    outcome = Simulation(cluster, trace).run()
    return Speed(
        gpus=cluster.gpus_in_use,
        workers=sum(cluster.counts.values()),
        requests=len(trace),
        cpu_s=time.process_time() - began_s,
        wall_s=time.perf_counter() - began_wall_s,
        events=outcome.events,
        failed=sum(outcome.requests.failures.values()),
        virtual_s=outcome.seconds,
        decode_busy_share=1.0 - outcome.match.decode_idle_share,
    )


def core_seconds(cluster: Cluster, trace: list[TraceRequest]) -> float:
    """Processor seconds of a run's events given to a core by themselves: what no simulator around
    it can save."""
    events: list[tuple[Event, float]] = []
    Simulation(cluster, trace, watch=lambda event, now_s, _: events.append((event, now_s))).run()
    core = Lifecycle(cluster.policy)
    gc.collect()
    with swept_by_hand():
        began_s = time.process_time()
        for event, now_s in events:
            core.handle(event, now_s)
        return time.process_time() - began_s


def _length(rng: random.Random, mean: float, deviation: float, most: int) -> int:
    return max(1, min(most, round(math.exp(rng.gauss(mean, deviation)))))
