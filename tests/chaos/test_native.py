"""Native workers that are killed, stalled and cut off under load: the tokens of a quiet run."""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import replace
from pathlib import Path

import pytest

from router.config import RouterConfig
from tests.chaos.faults import Chaos
from tests.chaos.load import ask, requests, summary
from tests.chaos.replayed import replayed
from tests.chaos.rig import running_rig
from workers.config import WorkerConfig
from workers.registry import Role

pytestmark = pytest.mark.e2e

_LOG = logging.getLogger(__name__)
_MODEL = str(Path("workers/checkpoints/tandem-tiny").resolve())
_VOCAB = 2000
_PATIENCE_S = 120.0


async def _chaos(folder: Path, seed: int, count: int, seconds: float) -> None:
    rng = random.Random(seed)
    stream = requests(rng, _VOCAB, prompts=(10, 200), answers=(20, 160), leavers=0.0, sampled=0.0)
    wanted = [next(stream) for _ in range(count)]
    workers: dict[Role, int] = {"prefill": 2, "decode": 2}
    worker = WorkerConfig("", "decode", _MODEL, "m", kv_tokens=8192, max_requests=8, lease_ms=1500)
    router = RouterConfig(
        _MODEL, "m", grpc="127.0.0.1:0", http="127.0.0.1:0", max_retries=20, silence_s=3.0
    )
    async with running_rig(folder, worker, router, workers, 1) as rig:
        (only,) = rig.routers
        quiet = await asyncio.gather(*(ask(only, one, _PATIENCE_S) for one in wanted))
        assert not [outcome.error for outcome in quiet if outcome.error]

        chaos = Chaos(
            rig,
            random.Random(seed + 1),
            gap_s=(0.3, 1.0),
            stall_s=(0.5, 3.0),
            kinds=("kill", "stall", "cut", "drain"),
        )
        breaking = asyncio.create_task(chaos.run(seconds))
        # Other numbers: under the same ids the router would answer from memory.
        again = [replace(one, number=1000 + one.number) for one in wanted]
        outcomes = await asyncio.gather(*(ask(only, one, _PATIENCE_S) for one in again))
        await breaking
        _LOG.info("%s; faults %s", summary(outcomes), dict(chaos.done))
        problems = [
            f"request {before.wanted.number}: {problem}"
            for before, after in zip(quiet, outcomes, strict=True)
            if (problem := after.problem(before.token_ids))
        ]
        assert not problems, "\n".join(problems)
        total = sum(workers.values())
        await only.status_when(
            lambda status: (
                status.queued_requests == status.running_requests == 0
                and len(status.workers) == total
                and all(one.connected and one.request_slots == 8 for one in status.workers)
            )
        )
        assert await replayed(rig.routers) > 0, "no answer had to go on elsewhere"


async def test_answers_are_those_of_a_quiet_run_whatever_breaks(tmp_path: Path) -> None:
    await _chaos(tmp_path, 5, count=24, seconds=6.0)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(6, 10))
async def test_answers_are_those_of_a_quiet_run_over_and_over(tmp_path: Path, seed: int) -> None:
    await _chaos(tmp_path, seed, count=60, seconds=20.0)
