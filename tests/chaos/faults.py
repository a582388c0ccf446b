"""Faults at seeded moments: killed, stalled and drained workers, cut and hanging sessions, a new
Valkey."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import grpc

from protos.tandem.v1 import admin_pb2
from tests.chaos.rig import Rig, Worker
from workers.registry import Role

_LOG = logging.getLogger(__name__)
Fault = Literal["kill", "stall", "cut", "hold", "drain", "store"]
FAULTS: tuple[Fault, ...] = get_args(Fault)


@dataclass
class Chaos:
    """Makes trouble until it is told to stop; a killed worker is replaced, as Ray Serve does."""

    rig: Rig
    rng: random.Random
    gap_s: tuple[float, float]
    stall_s: tuple[float, float]
    kinds: Sequence[Fault] = FAULTS
    done: Counter[str] = field(default_factory=Counter)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def run(self, seconds: float) -> None:
        """Returns when everything is whole again."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + seconds
        while loop.time() < end_s:
            await asyncio.sleep(self.rng.uniform(*self.gap_s))
            self._start(self.rng.choice(self.kinds))
        if self._tasks:
            done, _ = await asyncio.wait(self._tasks)
            for task in done:
                task.result()

    def _start(self, kind: Fault) -> None:
        role: Role = self.rng.choice(("prefill", "decode"))
        well = [worker for worker in self.rig.living(role) if not worker.troubled]
        if kind == "store":
            work = self._restart_store()
        elif len(well) < 2 or self.rig.proxy(victim := self.rng.choice(well)) is None:
            return
        elif kind == "kill":
            work = self._kill(victim)
        elif kind == "drain":
            work = self._drain(victim, self.rng.uniform(*self.stall_s))
        else:
            work = self._trouble(kind, victim, self.rng.uniform(*self.stall_s))
        self.done[f"{kind} {'' if kind == 'store' else role}".strip()] += 1
        task = asyncio.create_task(work)
        self._tasks.add(task)

    async def _restart_store(self) -> None:
        if not any(task.get_name() == "store" for task in self._tasks if not task.done()):
            task = asyncio.current_task()
            assert task is not None
            task.set_name("store")
            await self.rig.restart_store()

    async def _kill(self, victim: Worker) -> None:
        victim.kill()
        await self.rig.start_worker(victim.role)

    async def _drain(self, victim: Worker, seconds: float) -> None:
        """Have it take no more work until it is empty, or for so long, and then take work again."""
        admin = self.rig.routers[0].admin
        victim.troubled = True
        for resume in (False, True):
            order = admin_pb2.DrainRequest(worker_id=victim.worker_id, resume=resume)
            # A router may not know the worker, or lose it on the way.
            with contextlib.suppress(grpc.aio.AioRpcError, TimeoutError):
                async with asyncio.timeout(seconds):
                    async for _ in admin.Drain(order):
                        pass
        victim.troubled = False

    async def _trouble(self, kind: Fault, victim: Worker, seconds: float) -> None:
        proxy = self.rig.proxy(victim)
        assert proxy is not None
        victim.troubled = True
        if kind == "cut":
            proxy.cut()
        elif kind == "hold":
            proxy.hold()
            await asyncio.sleep(seconds)
            proxy.release()
        else:
            victim.stall()
            await asyncio.sleep(seconds)
            victim.go_on()
        victim.troubled = False
