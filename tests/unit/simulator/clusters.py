"""Small clusters of simple workers, and traffic for them."""

from __future__ import annotations

import random

from orchestrator.simulator.cluster import Cluster, WorkerKind
from orchestrator.simulator.linear_times import LinearStepTimes
from orchestrator.simulator.runs import Times
from orchestrator.simulator.trace import TraceRequest
from router.core.policy import ClassPolicy, Policy
from workers.engine.simulated.times import LinearTimes

TIMES = LinearStepTimes(
    LinearTimes(step_ms=5.0, prompt_token_us=50.0, row_us=200.0, context_token_us=0.3)
)


def kind(times: Times = TIMES, **fields: object) -> WorkerKind:
    values: dict[str, object] = {
        "max_requests": 16,
        "kv_tokens": 40_000,
        "step_tokens": 512,
        "out_bytes_per_s": 1e9,
        "in_bytes_per_s": 1e9,
        "cold_start_s": 3.0,
    }
    return WorkerKind(times, **{**values, **fields})  # type: ignore[arg-type]


def cluster(
    prefill: int = 2,
    decode: int = 3,
    times: Times = TIMES,
    gpus: int | None = None,
    **fields: object,
) -> Cluster:
    one = kind(times, **fields)
    policy = Policy(classes=(ClassPolicy("only", 60.0, 1.0, 1.0),))
    return Cluster(
        {"prefill": one, "decode": one}, {"prefill": prefill, "decode": decode}, policy, gpus
    )


def traffic(count: int, rate_rps: float, seed: int = 0, longest: int = 1500) -> list[TraceRequest]:
    """A Poisson process of requests of all sizes, the smallest included."""
    rng = random.Random(seed)
    now_s, out = 0.0, []
    for _ in range(count):
        now_s += rng.expovariate(rate_rps)
        prompt = rng.choice((1, rng.randint(2, 60), rng.randint(60, longest)))
        out.append(TraceRequest(now_s, prompt, rng.choice((1, 2, rng.randint(3, 200)))))
    return out
