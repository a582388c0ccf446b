"""Changes how many workers the pools have, within the spec's bounds: the one place that does.

Operators reach it through the routers' `Admin.Scale`, the autoscaler directly; both act alike.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from orchestrator.errors import UserError
from orchestrator.spec import ClusterSpec
from workers.registry import Role


@dataclass(frozen=True, slots=True)
class PoolBounds:
    """How few and how many workers a pool may have."""

    least: int
    most: int


def pool_bounds(spec: ClusterSpec) -> dict[Role, PoolBounds]:
    """`workers.min` and `workers.max` of both pools."""
    return {
        "prefill": PoolBounds(spec.prefill.workers.min, spec.prefill.workers.max),
        "decode": PoolBounds(spec.decode.workers.min, spec.decode.workers.max),
    }


class PoolScaler:
    """Sets pool sizes: `await scaler.scale("decode", 3)`; owned by one event loop.

    How it acts: Ray Serve is told the number of replicas that the pool's deployment shall have, and
    nothing more. It starts what is missing. Which replicas go it chooses itself (first those that
    do not run yet, then the newest; from outside that choice cannot be made), so each drains itself
    when it is stopped: it takes no more work of any router, finishes or hands on what it has, waits
    for its leases, and only then lets go (`WorkerReplica.__del__`). So a scale-down loses nothing,
    and is over when the replica has gone, not when `scale` returns. A worker that was flipped stays
    one of the deployment that started it and counts there, whatever its role; whoever matches roles
    has to add the change that he wants to `counts()`.
    """

    def __init__(
        self,
        bounds: Mapping[Role, PoolBounds],
        counts: Mapping[Role, int],
        resize: Callable[[Role, int], None],
    ) -> None:
        """`resize` has a pool be given so many replicas; it may block, and runs in a thread."""
        self._bounds = dict(bounds)
        self._counts = dict(counts)
        self._resize = resize
        self._one_at_a_time = asyncio.Lock()

    def counts(self) -> dict[Role, int]:
        """How many workers each pool is meant to have: some may still be starting or draining."""
        return dict(self._counts)

    async def scale_pools(self, wanted: Mapping[Role, int]) -> str:
        """Have these pools be given so many workers, as `scale`; in words, what that led to."""
        told: list[str] = []
        for role, workers in wanted.items():
            try:
                await self.scale(role, workers)
                told.append(f"Ray Serve gives the {role} pool {workers} workers")
            except UserError as error:
                told.append(f"{role}: {error.message}")
        return "; ".join(told)

    async def scale(self, role: Role, workers: int) -> None:
        """Have the pool of `role` be given so many workers; returns when Ray Serve knows.

        Raises UserError for a number that the spec does not allow, or when Ray Serve refuses.
        """
        bounds = self._bounds[role]
        if not bounds.least <= workers <= bounds.most:
            raise UserError(
                f"{role}: {workers} workers; the spec allows {bounds.least} to {bounds.most}",
                f"choose one of them, or change {role}.workers in the spec",
            )
        async with self._one_at_a_time:
            if workers != self._counts[role]:
                await asyncio.to_thread(self._resize, role, workers)
                self._counts[role] = workers
