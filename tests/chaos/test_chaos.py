"""Whatever breaks under load, every request ends right: the bytes of an undisturbed run, no token
lost, none doubled, and afterwards nobody holds anything."""

from __future__ import annotations

import asyncio
import logging
import random
from pathlib import Path

import pytest

from tests.chaos.faults import Chaos
from tests.chaos.load import load, requests, summary
from tests.chaos.replayed import replayed
from tests.chaos.rig import running_rig
from tests.chaos.simulated import (
    VOCAB,
    balanced,
    router_config,
    simulated_worker,
    wrong_answers,
)
from workers.registry import Role

_LOG = logging.getLogger(__name__)

pytestmark = pytest.mark.e2e

_PATIENCE_S = 60.0


async def _chaos(folder: Path, seed: int, seconds: float, per_s: float) -> None:
    rng = random.Random(seed)
    stream = requests(rng, VOCAB, prompts=(4, 400), answers=(1, 250), leavers=0.1, sampled=0.25)
    counts: dict[Role, int] = {"prefill": 2, "decode": 3}
    async with running_rig(
        folder, simulated_worker(folder), router_config(folder), counts, 2
    ) as rig:
        chaos = Chaos(rig, random.Random(seed + 1), gap_s=(0.2, 0.9), stall_s=(0.1, 4.0))
        loading = load(rng, rig.routers, stream, per_s, seconds, _PATIENCE_S)
        outcomes, _ = await asyncio.gather(loading, chaos.run(seconds))
        _LOG.info("seed %d: %s; faults %s", seed, summary(outcomes), dict(chaos.done))
        problems = wrong_answers(outcomes)
        assert not problems, "\n".join(problems)
        assert len(rig.living()) == sum(counts.values())
        for router in rig.routers:
            await router.status_when(
                lambda status: balanced(status, sum(counts.values()), len(rig.routers))
            )
        assert await replayed(rig.routers) > 0, "no answer had to go on elsewhere"


@pytest.mark.parametrize("seed", [1])
async def test_every_request_ends_right_whatever_breaks(tmp_path: Path, seed: int) -> None:
    await _chaos(tmp_path, seed, seconds=14.0, per_s=12.0)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(2, 8))
async def test_every_request_ends_right_over_and_over(tmp_path: Path, seed: int) -> None:
    await _chaos(tmp_path, seed, seconds=60.0, per_s=15.0)
