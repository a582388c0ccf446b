"""What other systems do, in the same seam: policies to be compared with.

Each follows the rule that its system documents or ships, with that system's defaults; what differs
is that all of them see the same observations and have the same actuators.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.autoscaler.decisions import Decision
from orchestrator.autoscaler.ground import Ground, whole
from orchestrator.autoscaler.lengths import Lengths
from orchestrator.autoscaler.observation import ROLES, Change, Observation
from protos.tandem.v1 import common_pb2
from router.core.events import Role


class _Rule(ABC):
    """Counts decisions; `_counts` is the rule."""

    name = ""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._numbers = itertools.count(1)

    def __call__(self, observed: Observation, wanted: Mapping[Role, int]) -> Change:
        after: dict[Role, int] = {
            role: self._ground.bounded(role, count)
            for role, count in self._counts(observed, wanted).items()
        }
        if after == dict(wanted):
            return Change(wanted)
        number = next(self._numbers)
        reason = common_pb2.REASON_POLICY_RULE
        decision = Decision(number, observed.now_s, self.name, reason, dict(wanted), after)
        return Change(after, decision=decision)

    @abstractmethod
    def _counts(self, observed: Observation, wanted: Mapping[Role, int]) -> Mapping[Role, int]:
        """How many workers of each role there should be."""


class FixedCounts(_Rule):
    """As many as it is told: what `static-best` is made of."""

    name = "static"

    def __init__(self, ground: Ground, counts: Mapping[Role, int]) -> None:
        super().__init__(ground)
        self._fixed = dict(counts)

    def _counts(self, observed: Observation, wanted: Mapping[Role, int]) -> Mapping[Role, int]:
        return self._fixed


@dataclass(slots=True)
class _Delayed:
    """A wish must last before it is granted."""

    up_s: float
    down_s: float
    since_s: float = math.nan
    direction: int = 0

    def count(self, now_s: float, wish: int, wanted: int) -> int:
        direction = (wish > wanted) - (wish < wanted)
        if direction != self.direction:
            self.direction, self.since_s = direction, now_s
        delay_s = self.up_s if direction > 0 else self.down_s
        if direction and now_s - self.since_s >= delay_s - 1e-6:
            self.direction = 0
            return wish
        return wanted


class RayDefault(_Rule):
    """Ray Serve: replicas = ongoing requests / target, each deployment for itself.

    Defaults of `AutoscalingConfig` in Ray 2.60: target_ongoing_requests 2, averaged over 30 s,
    upscale after 30 s, downscale after 600 s, factors 1. What waits in the router counts as ongoing
    in the first pool, as handles count what they have queued.
    """

    name = "ray-default"

    def __init__(
        self,
        ground: Ground,
        target: float = 2.0,
        look_back_s: float = 30.0,
        up_s: float = 30.0,
        down_s: float = 600.0,
    ) -> None:
        super().__init__(ground)
        self._target = target
        self._look_back = max(round(look_back_s / ground.period_s), 1)
        self._seen: dict[Role, deque[float]] = {
            role: deque(maxlen=self._look_back) for role in ROLES
        }
        self._delayed = {role: _Delayed(up_s, down_s) for role in ROLES}

    def _counts(self, observed: Observation, wanted: Mapping[Role, int]) -> Mapping[Role, int]:
        counts: dict[Role, int] = {}
        for role in ROLES:
            ongoing = sum(one.running for one in observed.workers if one.role == role)
            if role == "prefill":
                ongoing += observed.queued_requests
            seen = self._seen[role]
            seen.append(float(ongoing))
            wish = self._ground.bounded(role, whole(sum(seen) / len(seen) / self._target))
            counts[role] = self._delayed[role].count(observed.now_s, wish, wanted[role])
        return counts


class PerRole(_Rule):
    """Dynamo's planner: ceil(demand / engine rate) for each role alone, every interval.

    The demand is that of the last interval (its constant predictor); the rate of an engine is what
    it does at its targets, from the same performance model that `tandem` uses; there is no term for
    waiting, for what a start takes, or for the link.
    """

    name = "per-role"

    def __init__(self, ground: Ground, interval_s: float = 60.0) -> None:
        super().__init__(ground)
        self._interval_s = interval_s
        self._due_s = interval_s
        self._arrived = 0
        self._lengths = Lengths(interval_s, ground.isl_tokens, ground.osl_tokens)

    def _counts(self, observed: Observation, wanted: Mapping[Role, int]) -> Mapping[Role, int]:
        self._arrived += observed.traffic.arrived
        self._lengths.observe(observed.traffic, observed.period_s)
        if observed.now_s < self._due_s - 1e-6:
            return wanted
        demand_rps, self._arrived = self._arrived / self._interval_s, 0
        self._due_s = observed.now_s + self._interval_s
        one, other = self._ground.workers(self._lengths.workload(self._ground.attainment))
        return {"prefill": whole(demand_rps / one.rate), "decode": whole(demand_rps / other.rate)}


class Threshold(_Rule):
    """llm-d's saturation rule: a pool grows by one while KV use is at least 0.8 or 5 wait at each
    worker, and shrinks by one when the rest would stay clear of both, each role for itself.

    Spare room that must stay: 0.1 of KV and 3 places in the queue. It looks once in `interval_s`.
    """

    name = "threshold"

    def __init__(self, ground: Ground, interval_s: float = 30.0) -> None:
        super().__init__(ground)
        self._interval_s = interval_s
        self._due_s = interval_s

    def _counts(self, observed: Observation, wanted: Mapping[Role, int]) -> Mapping[Role, int]:
        if observed.now_s < self._due_s - 1e-6:
            return wanted
        self._due_s = observed.now_s + self._interval_s
        counts: dict[Role, int] = {}
        for role in ROLES:
            mine = [one for one in observed.workers if one.role == role and not one.leaving]
            here, count = max(len(mine), 1), wanted[role]
            kv = sum(one.held_tokens / max(one.total_tokens, 1) for one in mine) / here
            queued = observed.queued_requests / here
            if role == "prefill":
                queued += sum(one.running for one in mine) / here
            if observed.coming[role]:
                pass  # it waits for those that come
            elif kv >= 0.8 or queued >= 5.0:
                count += 1
            elif here > 1:
                fewer = here / (here - 1)
                if kv * fewer < 0.8 - 0.1 and queued * fewer < 5.0 - 3.0:
                    count -= 1
            counts[role] = count
        return counts
