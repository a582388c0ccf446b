"""Workers are drained again and again under load while others fail: no answer notices.

The scripted workers and the checks are those of the random machine; here events are drawn by seed,
so that most requests move, some of them several times.
"""

from __future__ import annotations

import random
from collections import Counter

from protos.tandem.v1 import common_pb2
from router.core.events import DrainRequested, Ended, FlipRequested, Role, WorkerJoined, WorkerLost
from router.core.request import Cause
from tests.unit.router.scripted_workers import ScriptedWorker
from tests.unit.router.test_lifecycle_machine import REFUSALS, RouterMachine

_ROUNDS = 60


def _storm(seed: int) -> Counter[tuple[Cause, int]]:
    """One run to its end, every answer checked; returns what moved requests and why."""
    rng = random.Random(seed)
    machine = RouterMachine()
    pools: tuple[Role, ...] = ("prefill", "decode", "decode", "decode")
    for role in pools:
        machine.worker_joins(role)
    for _ in range(_ROUNDS):
        draw = rng.random()
        names = sorted(machine.workers)
        decoders = [name for name in names if machine.workers[name].role == "decode"]
        if draw < 0.3:
            length = rng.choice([1, 6, 20, 20])
            machine.requests_arrive([length], rng.randrange(2), None, "", rng.randrange(3))
        elif draw < 0.55 and decoders:
            worker = rng.choice(decoders)
            machine.feed(DrainRequested(worker, resume=machine.workers[worker].draining))
        elif draw < 0.58 and names:
            machine.feed(FlipRequested(rng.choice(names), rng.choice(pools)))
        elif draw < 0.62 and decoders:
            _lose(machine, rng.choice(decoders), rng.random() < 0.5)
        elif draw < 0.68:
            _fail(machine, rng)
        elif draw < 0.72:
            machine.time_passes(0.5)
        for one in machine.workers.values():
            machine.feed(one.credits())
        machine.workers_run(rng, rng.randint(2, 12))
    machine.teardown()
    causes: Counter[tuple[Cause, int]] = Counter()
    for name in machine.finished:
        story = machine.lifecycle.explain(name)
        assert story is not None
        for step in story.transitions:
            causes[step.cause, step.reason] += 1
    return causes


def _lose(machine: RouterMachine, worker_id: str, comes_back: bool) -> None:
    old = machine.workers.pop(worker_id)
    machine.feed(WorkerLost(worker_id))
    if comes_back or len(machine.workers) < 2:
        worker = ScriptedWorker(
            worker_id, old.role, machine.max_tokens, machine.written, machine.feed
        )
        machine.workers[worker_id] = worker
        machine.feed(WorkerJoined(worker_id, old.role))
        machine.feed(worker.credits())


def _fail(machine: RouterMachine, rng: random.Random) -> None:
    busy = sorted(name for name, worker in machine.workers.items() if worker.jobs)
    if busy:
        worker = machine.workers[rng.choice(busy)]
        handle = rng.choice(sorted(worker.jobs))
        del worker.jobs[handle]
        machine.feed(Ended(worker.worker_id, handle, rng.choice(REFUSALS[:4]), "scripted"))


def test_answers_are_whole_however_often_their_workers_are_emptied_or_fail() -> None:
    causes: Counter[tuple[Cause, int]] = Counter()
    for seed in range(40):
        causes += _storm(seed)
    assert causes[Cause.MOVED, common_pb2.REASON_MIGRATED] > 20
    assert causes[Cause.STAYS, common_pb2.REASON_TRANSFER_FAILED] > 4
