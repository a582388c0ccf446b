"""Two routers over the same directory: they share what workers take, and one that is killed takes
only its own connections along."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from protos.tandem.v1 import admin_pb2
from tests.chaos.load import Outcome, ask, requests
from tests.chaos.rig import Router, running_rig
from tests.chaos.simulated import (
    MAX_REQUESTS,
    VOCAB,
    balanced,
    router_config,
    simulated_worker,
    wrong_answers,
)
from workers.registry import Role

pytestmark = pytest.mark.e2e

_PATIENCE_S = 60.0
_ANSWER = 150


def _decode(status: admin_pb2.GetStatusResponse) -> admin_pb2.WorkerStatus:
    (worker,) = [worker for worker in status.workers if worker.role == "decode"]
    return worker


async def _running(router: Router, requests_: int) -> admin_pb2.WorkerStatus:
    """The decode worker as a router sees it, once so many requests of it run there."""
    return _decode(
        await router.status_when(lambda status: _decode(status).running_requests == requests_)
    )


async def test_a_killed_router_takes_only_its_own_connections_along(tmp_path: Path) -> None:
    rng = random.Random(3)
    stream = requests(
        rng, VOCAB, prompts=(20, 60), answers=(_ANSWER, _ANSWER), leavers=0.0, sampled=0.25
    )
    workers: dict[Role, int] = {"prefill": 1, "decode": 1}
    config = router_config(tmp_path)
    async with running_rig(tmp_path, simulated_worker(tmp_path), config, workers, 2) as rig:
        lasting, lost = rig.routers
        for router in rig.routers:
            await router.status_when(lambda status: balanced(status, 2, 2))

        def begin(router: Router, count: int) -> list[asyncio.Task[Outcome]]:
            return [
                asyncio.create_task(ask(router, next(stream), _PATIENCE_S, again=False))
                for _ in range(count)
            ]

        kept, broken = begin(lasting, 6), begin(lost, 10)
        seen, other = await asyncio.gather(_running(lasting, 6), _running(lost, 10))
        # Each is offered half of what is left, whoever took the rest.
        for worker in (seen, other):
            assert worker.request_slots <= MAX_REQUESTS // 2
        offered = await lasting.status_when(
            lambda status: _decode(status).request_slots == (MAX_REQUESTS - 16) // 2
        )
        assert offered.running_requests == 6

        lost.kill()
        outcomes = await asyncio.gather(*broken)
        assert all(outcome.error or outcome.refusals for outcome in outcomes), "it is not dead"
        # What it had is freed, and all of it goes to the one that is left.
        await lasting.status_when(
            lambda status: (
                _decode(status).request_slots + _decode(status).running_requests == MAX_REQUESTS
            )
        )
        again = [
            asyncio.create_task(ask(lasting, outcome.wanted, _PATIENCE_S)) for outcome in outcomes
        ]
        assert not wrong_answers(await asyncio.gather(*kept, *again))
        await lasting.status_when(lambda status: balanced(status, 2, 1))


async def test_a_request_that_is_sent_again_is_answered_again_and_not_run_twice(
    tmp_path: Path,
) -> None:
    rng = random.Random(4)
    stream = requests(rng, VOCAB, prompts=(20, 60), answers=(40, 80), leavers=0.0, sampled=0.25)
    workers: dict[Role, int] = {"prefill": 1, "decode": 1}
    config = router_config(tmp_path)
    async with running_rig(tmp_path, simulated_worker(tmp_path), config, workers, 1) as rig:
        (router,) = rig.routers
        wanted = [next(stream) for _ in range(5)]
        first = await asyncio.gather(*(ask(router, one, _PATIENCE_S) for one in wanted))
        (worker,) = rig.living("decode")
        worker.kill()
        # There is nobody left who could run it.
        second = await asyncio.gather(*(ask(router, one, _PATIENCE_S) for one in wanted))
        assert not wrong_answers([*first, *second])
        assert not any(outcome.refusals for outcome in second)
