"""Simulated workers for chaos: their limits, their routers, and what their answers must be."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from protos.tandem.v1 import admin_pb2
from router.config import RouterConfig
from tests.chaos.load import Outcome
from workers.config import WorkerConfig
from workers.engine.commands import Sampling
from workers.engine.simulated.text import expected_answer
from workers.engine.simulated.times import LinearTimes

VOCAB = 500
MAX_REQUESTS = 32
_KV_TOKENS = 20_000


def simulated_worker(folder: Path) -> WorkerConfig:
    limits = {"max_position_embeddings": 4096, "vocab_size": VOCAB}
    (folder / "config.json").write_text(json.dumps(limits))
    return WorkerConfig(
        worker_id="",
        role="decode",
        model_path=str(folder),
        model_name="m",
        engine="simulated",
        max_requests=MAX_REQUESTS,
        kv_tokens=_KV_TOKENS,
        lease_ms=1000,
        simulated=LinearTimes(step_ms=8.0, prompt_token_us=200.0, row_us=20.0, transfer_ms=5.0),
    )


def router_config(folder: Path) -> RouterConfig:
    return RouterConfig(
        model_path=str(folder),
        model_name="m",
        grpc="127.0.0.1:0",
        http="127.0.0.1:0",
        # Faults come so thick that one request may meet many of them.
        max_retries=50,
        silence_s=1.5,
    )


def balanced(status: admin_pb2.GetStatusResponse, workers: int, routers: int) -> bool:
    """Nothing waits, nothing runs, and each worker offers its part of everything."""
    slots = -(-MAX_REQUESTS // routers)
    return (
        status.queued_requests == status.running_requests == 0
        and len(status.workers) == workers
        and all(
            worker.connected
            and worker.running_requests == 0
            and worker.request_slots == slots
            and worker.free_tokens == worker.total_tokens
            for worker in status.workers
        )
    )


def wrong_answers(outcomes: Sequence[Outcome]) -> list[str]:
    """What is wrong with which request."""
    problems = []
    for outcome in outcomes:
        wanted = outcome.wanted
        sampling = Sampling(wanted.max_tokens, temperature=wanted.temperature, seed=wanted.seed)
        expected = expected_answer(wanted.prompt, sampling, VOCAB, wanted.max_tokens)
        if problem := outcome.problem(expected):
            problems.append(f"request {wanted.number}: {problem}")
    return problems
