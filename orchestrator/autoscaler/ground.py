"""What a policy is told once: the workers of each role, the targets, the limits, the clock."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.autoscaler.capacity import Reading, Writing, reading, writing
from orchestrator.autoscaler.observation import ROLES
from orchestrator.autoscaler.sizing import Need, Sizing
from orchestrator.planner.workload import Workload
from orchestrator.simulator.cluster import WorkerKind
from router.core.events import Role

# Of the ITL target: a mean over a request's steps varies with who shares them.
_ITL_SHARE = 0.95


@dataclass(frozen=True, slots=True)
class Ground:
    """What does not change while a policy runs.

    Attributes:
        kinds: workers of each role.
        ttft_s, itl_s: targets of the strictest class.
        least, most: workers of each role.
        period_s: from one look to the next; cold_start_s: from deciding to serving.
        role_flip: whether a worker may take the other role.
        attainment: share of requests that are to meet their targets.
        season_s: after which traffic repeats; None: not known.
        isl_tokens, osl_tokens: believed until requests have been seen.
    """

    kinds: dict[Role, WorkerKind]
    ttft_s: float
    itl_s: float
    least: Mapping[Role, int] = field(default_factory=lambda: {"prefill": 1, "decode": 1})
    most: Mapping[Role, int] = field(default_factory=lambda: dict.fromkeys(ROLES, 4096))
    period_s: float = 5.0
    cold_start_s: float = 60.0
    role_flip: bool = True
    attainment: float = 0.99
    season_s: float | None = None
    isl_tokens: float = 1000.0
    osl_tokens: float = 200.0

    @property
    def can_flip(self) -> bool:
        """Only workers of equal layouts can take each other's role."""
        return self.role_flip and self.kinds["prefill"].layout == self.kinds["decode"].layout

    def bounded(self, role: Role, count: int) -> int:
        """Within the limits of a pool."""
        return min(max(count, self.least[role]), self.most[role])

    def workers(
        self, workload: Workload, factors: Mapping[Role, float] | None = None
    ) -> tuple[Reading, Writing]:
        """What one worker of each role does of a workload, with measured corrections."""
        by = factors or dict.fromkeys(ROLES, 1.0)
        one = reading(self.kinds["prefill"], workload, by["prefill"])
        itl_s = self.itl_s * _ITL_SHARE
        return one, writing(self.kinds["decode"], workload, itl_s, one.mean_s, by["decode"])

    def sizing(
        self,
        workload: Workload,
        factors: Mapping[Role, float] | None = None,
        may_miss: float | None = None,
        burstiness: float = 1.0,
    ) -> Sizing:
        """Turns demands into counts for a workload."""
        one, other = self.workers(workload, factors)
        return Sizing(
            one,
            other,
            self.kinds["prefill"].gpus,
            self.kinds["decode"].gpus,
            self.ttft_s,
            (1.0 - self.attainment) / 2.0 if may_miss is None else may_miss,
            burstiness,
        )


def within(ground: Ground, need: Need) -> dict[Role, int]:
    """The counts of a need within the limits."""
    return {role: ground.bounded(role, need.of(role)) for role in ROLES}


def whole(value: float) -> int:
    """The next whole number, rounding errors aside."""
    return math.ceil(value - 1e-9)
