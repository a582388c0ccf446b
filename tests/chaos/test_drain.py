"""Decode workers are drained under load: their answers go on elsewhere, and none notices."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path

import pytest

from protos.tandem.v1 import admin_pb2
from protos.tandem.v1.common_pb2 import REASON_MIGRATED
from router.config import RouterConfig
from tests.chaos.load import Outcome, Wanted, ask, requests
from tests.chaos.replayed import moved, replayed
from tests.chaos.rig import Rig, Router, running_rig
from workers.config import WorkerConfig
from workers.registry import Role

pytestmark = pytest.mark.e2e

_MODEL = str(Path("workers/checkpoints/tandem-tiny").resolve())
_VOCAB = 2000
_PATIENCE_S = 120.0


async def _drain(router: Router, worker_id: str) -> list[admin_pb2.DrainProgress]:
    async with asyncio.timeout(_PATIENCE_S):
        order = admin_pb2.DrainRequest(worker_id=worker_id)
        return [progress async for progress in router.admin.Drain(order)]


async def _resume(router: Router, worker_id: str) -> None:
    async for _ in router.admin.Drain(admin_pb2.DrainRequest(worker_id=worker_id, resume=True)):
        pass


def _busiest(status: admin_pb2.GetStatusResponse) -> admin_pb2.WorkerStatus | None:
    """The decode worker with the most requests, if it has several."""
    decoders = [one for one in status.workers if one.role == "decode"]
    busiest = max(decoders, key=lambda one: one.running_requests, default=None)
    return busiest if busiest is not None and busiest.running_requests > 1 else None


async def _answers_while_drained(rig: Rig, wanted: list[Wanted]) -> list[Outcome]:
    """Ask for all while decode workers are drained in turn."""
    (router,) = rig.routers
    asking = [asyncio.create_task(ask(router, one, _PATIENCE_S)) for one in wanted]
    busiest = _busiest(await router.status_when(lambda status: _busiest(status) is not None))
    assert busiest is not None
    decoders = {worker.worker_id for worker in rig.living("decode")} - {busiest.worker_id}
    for worker_id in [busiest.worker_id, *decoders]:
        progress = await _drain(router, worker_id)
        assert progress[-1].safe_to_delete
        await _resume(router, worker_id)
    return list(await asyncio.gather(*asking))


async def test_answers_of_drained_decode_workers_go_on_elsewhere_byte_for_byte(
    tmp_path: Path,
) -> None:
    rng = random.Random(4)
    stream = requests(
        rng, _VOCAB, prompts=(10, 200), answers=(1000, 1150), leavers=0.0, sampled=0.0
    )
    wanted = [next(stream) for _ in range(6)]
    workers: dict[Role, int] = {"prefill": 1, "decode": 2}
    worker = WorkerConfig(
        "", "decode", _MODEL, "m", kv_tokens=16_384, max_requests=8, lease_ms=10_000
    )
    router = RouterConfig(_MODEL, "m", grpc="127.0.0.1:0", http="127.0.0.1:0")
    async with running_rig(tmp_path, worker, router, workers, 1) as rig:
        (only,) = rig.routers
        quiet = await asyncio.gather(*(ask(only, one, _PATIENCE_S) for one in wanted))
        assert not [outcome.error for outcome in quiet if outcome.error]
        # Other numbers: under the same ids the router would answer from memory.
        again = [replace(one, number=1000 + one.number) for one in wanted]
        outcomes = await _answers_while_drained(rig, again)
        problems = [
            f"request {before.wanted.number}: {problem}"
            for before, after in zip(quiet, outcomes, strict=True)
            if (problem := after.problem(before.token_ids))
        ]
        assert not problems, "\n".join(problems)
        stories = [
            await only.admin.Explain(admin_pb2.ExplainRequest(request_id=one.message.request_id))
            for one in again
        ]
        reasons = [step.reason for story in stories for step in story.steps]
        assert REASON_MIGRATED in reasons
        assert not sum(story.retries for story in stories), "nothing was read anew"
        await only.status_when(
            lambda status: all(one.connected and one.request_slots == 8 for one in status.workers)
        )
        await replayed(rig.routers)
        assert moved(rig.routers) == reasons.count(REASON_MIGRATED)
