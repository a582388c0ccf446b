"""Whatever breaks under load, every request ends right: the bytes of an undisturbed run, no token
lost, none doubled, and afterwards nobody holds anything."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from pathlib import Path

import pytest

from protos.tandem.v1 import admin_pb2
from router.config import RouterConfig
from router.core.event_log import replay
from tests.chaos.faults import Chaos
from tests.chaos.load import load, requests, summary
from tests.chaos.rig import Rig, running_rig
from workers.config import WorkerConfig
from workers.engine.commands import Sampling
from workers.engine.simulated.text import expected_answer
from workers.engine.simulated.times import LinearTimes
from workers.registry import Role

_LOG = logging.getLogger(__name__)

pytestmark = pytest.mark.e2e

_VOCAB = 500
_PATIENCE_S = 60.0
_MAX_REQUESTS, _KV_TOKENS = 32, 20_000


def _simulated(folder: Path) -> WorkerConfig:
    limits = {"max_position_embeddings": 4096, "vocab_size": _VOCAB}
    (folder / "config.json").write_text(json.dumps(limits))
    return WorkerConfig(
        worker_id="",
        role="decode",
        model_path=str(folder),
        model_name="m",
        engine="simulated",
        max_requests=_MAX_REQUESTS,
        kv_tokens=_KV_TOKENS,
        lease_ms=1000,
        simulated=LinearTimes(step_ms=8.0, prompt_token_us=200.0, row_us=20.0, transfer_ms=5.0),
    )


def _router(folder: Path) -> RouterConfig:
    return RouterConfig(
        model_path=str(folder),
        model_name="m",
        grpc="127.0.0.1:0",
        http="127.0.0.1:0",
        # Faults come so thick that one request may meet many of them.
        max_retries=50,
        silence_s=1.5,
    )


def _balanced(status: admin_pb2.GetStatusResponse, workers: int, routers: int) -> bool:
    """Nothing waits, nothing runs, and each worker offers its part of everything."""
    slots = -(-_MAX_REQUESTS // routers)
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


async def _chaos(folder: Path, seed: int, seconds: float, per_s: float) -> None:
    rng = random.Random(seed)
    stream = requests(rng, _VOCAB, prompts=(4, 400), answers=(1, 250), leavers=0.1)
    counts: dict[Role, int] = {"prefill": 2, "decode": 3}
    async with running_rig(folder, _simulated(folder), _router(folder), counts, 2) as rig:
        chaos = Chaos(rig, random.Random(seed + 1), gap_s=(0.2, 0.9), stall_s=(0.1, 4.0))
        loading = load(rng, rig.routers, stream, per_s, seconds, _PATIENCE_S)
        outcomes, _ = await asyncio.gather(loading, chaos.run(seconds))
        _LOG.info("seed %d: %s; faults %s", seed, summary(outcomes), dict(chaos.done))
        problems = []
        for outcome in outcomes:
            wanted = outcome.wanted
            sampling = Sampling(wanted.max_tokens, temperature=wanted.temperature, seed=wanted.seed)
            expected = expected_answer(wanted.prompt, sampling, _VOCAB, wanted.max_tokens)
            if problem := outcome.problem(expected):
                problems.append(f"request {wanted.number}: {problem}")
        assert not problems, "\n".join(problems)
        assert len(rig.living()) == sum(counts.values())
        for router in rig.routers:
            await router.status_when(
                lambda status: _balanced(status, sum(counts.values()), len(rig.routers))
            )
        await _replayed(rig)


async def _replayed(rig: Rig) -> None:
    """What the routers did comes out again, and holds all that must be true after each event."""
    for router in rig.routers:
        await router.stop()
        with router.log.open() as lines:
            steps = [step.same for step in replay(lines, validate=True)]
        assert len(steps) > 100
        assert all(steps), f"{steps.count(False)} of {len(steps)} events came out otherwise"


@pytest.mark.parametrize("seed", [1])
async def test_every_request_ends_right_whatever_breaks(tmp_path: Path, seed: int) -> None:
    await _chaos(tmp_path, seed, seconds=20.0, per_s=12.0)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(2, 8))
async def test_every_request_ends_right_over_and_over(tmp_path: Path, seed: int) -> None:
    await _chaos(tmp_path, seed, seconds=60.0, per_s=15.0)
