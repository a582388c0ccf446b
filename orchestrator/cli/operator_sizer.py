"""The autoscaler of a TandemService: the same policy and loop as beside `tandem up`.

Its scaler is the resource instead of Ray Serve, and its journal the resource's status.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime

from k8s.operator.scaling import DecisionRow, Pools
from k8s.operator.status import timestamp
from orchestrator.autoscaler.decisions import Decision
from orchestrator.autoscaler.live import ground_of_spec
from orchestrator.autoscaler.loop import AutoscalerLoop, RouterCalls, Routers
from orchestrator.autoscaler.policy import TandemPolicy
from router.core.events import Role
from router.core.reasons import reason_name


class PolicySizer:
    """Sizes the pools of one service by `TandemPolicy`."""

    def __init__(
        self,
        pools: Pools,
        routers: Routers | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._pools = pools
        self._now = now
        # Numbers go on where the process before left off: an id names one decision.
        self._told_before = pools.last_number
        spec = pools.service.spec
        ground = ground_of_spec(spec)
        self._loop = AutoscalerLoop(
            TandemPolicy(ground),
            ground,
            self,
            routers or RouterCalls(pools.routers),
            self,
            "active" if spec.autoscaling.mode == "active" else "advisory",
        )

    async def step(self, now_s: float) -> None:
        """Ask the routers, and have the pools be what the policy makes of the answers."""
        await self._loop.step(now_s)

    def close(self) -> None:
        """Wait for no flip any more."""
        self._loop.close()

    def counts(self) -> Mapping[Role, int]:
        """How many workers the resource asks for."""
        return self._pools.counts()

    async def scale_pools(self, wanted: Mapping[Role, int]) -> str:
        """Both go into one write, which the operator makes after the step."""
        self._pools.want(wanted)
        asked = ", ".join(f"{workers} {role}" for role, workers in self._pools.counts().items())
        return f"the resource asks for {asked} workers"

    def write(self, decision: Decision) -> None:
        """Keep a decision in the resource's status."""
        known = replace(decision, number=self._told_before + decision.number)
        self._pools.note(
            DecisionRow(
                known.number,
                timestamp(self._now()),
                reason_name(known.reason),
                known.summary(),
                known.outcome,
                known.before,
                known.after,
                tuple(known.lines()),
            )
        )
