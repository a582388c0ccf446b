"""Tandem's autoscaler: both pools sized in one decision, for the load at now + cold start.

    up    the counts that the expected demand needs, at once
    down  the most that was needed within `hold_s`, for a demand that is larger by a margin:
          the consolidation test, which the workers that stay must pass all of that time
    flip  a worker of a pool with some to spare instead of a cold start in the other

The gap between the two demands, and the time that a surplus has to last, are why constant traffic
causes no actions: what was too little for `up` is never what was too much for `down`. A worker that
is idle for the time of a cold start has cost what starting another one costs, so `hold_s` is a
fraction of that time (the ski-rental argument).
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.autoscaler.correction import Correction
from orchestrator.autoscaler.decisions import Alternative, Decision
from orchestrator.autoscaler.ground import Ground, within
from orchestrator.autoscaler.lengths import Lengths
from orchestrator.autoscaler.observation import ROLES, Change, Observation
from orchestrator.autoscaler.rates import ArrivalRate, Rate
from orchestrator.autoscaler.sizing import Need, Sizing
from protos.tandem.v1 import common_pb2
from router.core.events import Role
from router.core.reasons import Reason

_SHRINKS = 0.8  # of a queue, of which less is left after a period when it is being worked off
_STUCK = 2  # periods in which it did not shrink, after which it counts as demand


@dataclass(frozen=True, slots=True)
class Tuning:
    """How the policy weighs being short against being wasteful.

    Attributes:
        window_s: over which arrivals are averaged.
        lengths_half_life_s: of what is remembered of ISL and OSL.
        doubt_up: standard deviations of the rate that are added to it before sizing up;
            doubt_jump: in the first periods after a jump, so that what one period says of the new
            level is not corrected upwards by each that follows.
        margin_down, doubt_down: share of the rate, and standard deviations, that the workers which
            stay must be able to carry besides.
        hold_share, least_hold_s: how long a surplus must last that a jump has made: a share of the
            cold start.
        drift_holds: how many times as long one must last that the rate has drifted into, because
            noise at an edge between two counts looks the same.
        warm_s: age from which on a worker's own measurements count.
        correction_half_life_s: of the measured over the predicted rates.
    """

    window_s: float = 45.0
    lengths_half_life_s: float = 60.0
    doubt_up: float = 0.3
    doubt_jump: float = 1.0
    margin_down: float = 0.05
    doubt_down: float = 1.5
    hold_share: float = 0.5
    least_hold_s: float = 20.0
    drift_holds: float = 2.0
    warm_s: float = 15.0
    correction_half_life_s: float = 60.0


@dataclass(frozen=True, slots=True)
class _Basis:
    """What a decision rests on."""

    rate: Rate
    up_rps: float
    backlog_rps: float
    idle: bool
    isl_tokens: float
    osl_tokens: float

    def longer(self, before: _Basis) -> bool:
        """Whether requests have become longer by more than a tenth."""
        return (
            self.isl_tokens > 1.1 * before.isl_tokens or self.osl_tokens > 1.1 * before.osl_tokens
        )


class TandemPolicy:
    """Holds what it has learnt; `__call__` is what happens each period."""

    name = "tandem"

    def __init__(self, ground: Ground, tuning: Tuning | None = None) -> None:
        self._ground = ground
        self._tuning = tuning = tuning or Tuning()
        self._lead_s = ground.cold_start_s + ground.period_s
        self._rate = ArrivalRate(ground.period_s, self._lead_s, tuning.window_s, ground.season_s)
        self._lengths = Lengths(tuning.lengths_half_life_s, ground.isl_tokens, ground.osl_tokens)
        self._correction = Correction(tuning.warm_s, tuning.correction_half_life_s)
        self._hold_s = max(ground.cold_start_s * tuning.hold_share, tuning.least_hold_s)
        self._kept: deque[tuple[float, dict[Role, int]]] = deque()
        self._fell_s = -math.inf  # when the rate last jumped down
        self._quiet_s = 0.0
        self._queued = self._stuck = 0
        self._began_s: float | None = None
        self._sized_for: _Basis | None = None  # the decision before
        self._numbers = itertools.count(1)

    def __call__(self, observed: Observation, wanted: Mapping[Role, int]) -> Change:
        """Counts and flips for what was observed; the same counts while nothing has to change."""
        ground, tuning = self._ground, self._tuning
        self._learn(observed)
        workload = self._lengths.workload(ground.attainment)
        sizing = ground.sizing(workload, self._correction.factors)
        rate = self._rate.now()
        if rate.fell:
            self._fell_s = observed.now_s
        up_rps = self._demand(rate, tuning.doubt_jump if rate.fresh else tuning.doubt_up)
        backlog_rps = self._backlog_rps(observed, sizing)
        down_rps = self._demand(rate, tuning.doubt_down) * (1.0 + tuning.margin_down)
        idle = self._quiet_s >= max(tuning.window_s, 3.0 * ground.period_s)
        need = self._need(sizing, 0.0 if idle else up_rps + backlog_rps)
        keep_need = self._need(sizing, 0.0 if idle else max(down_rps, up_rps) + backlog_rps)
        up, keep = self._bounded(need), self._bounded(keep_need)
        keep = {role: max(up[role], keep[role]) for role in ROLES}
        have: dict[Role, int] = {role: observed.expected(role) for role in ROLES}
        held = self._held(observed.now_s, have, keep)
        after = self._target(observed, have, up, keep, held)
        flips = self._flips(observed, have, after, keep)
        if after == have and not any(flips.values()):
            return Change(have if dict(wanted) != have else wanted)
        basis = _Basis(rate, up_rps, backlog_rps, idle, workload.mean_isl, workload.mean_osl)
        reason = self._reason(observed, have, after, flips, basis)
        self._sized_for = basis
        decision = Decision(
            next(self._numbers),
            observed.now_s,
            self.name,
            reason,
            have,
            after,
            flips,
            self._inputs(observed, rate, sizing, backlog_rps),
            "" if need is None else need.formula(),
            self._alternatives(have, after, flips, held, up),
        )
        return Change(after, flips, decision)

    def _held(
        self, now_s: float, have: Mapping[Role, int], keep: Mapping[Role, int]
    ) -> dict[Role, int]:
        """The most that was worth keeping within the time that a surplus must last."""
        if self._began_s is None:
            self._began_s = now_s
        self._kept.append((now_s, dict(keep)))
        longest_s = self._hold_s * self._tuning.drift_holds
        while self._kept[0][0] < now_s - longest_s:
            self._kept.popleft()
        hold_s = self._hold_s if now_s - self._fell_s <= longest_s else longest_s
        late = [one for at_s, one in self._kept if at_s >= now_s - hold_s]
        held = {role: max(one[role] for one in late) for role in ROLES}
        if now_s - self._began_s < hold_s:
            # Nothing is known yet of the time before.
            return {role: max(have[role], held[role]) for role in ROLES}
        return held

    def _learn(self, observed: Observation) -> None:
        traffic = observed.traffic
        self._lengths.observe(traffic, observed.period_s)
        self._rate.observe(traffic.arrived)
        self._quiet_s = 0.0 if traffic.arrived else self._quiet_s + observed.period_s
        workload = self._lengths.workload(self._ground.attainment)
        self._correction.observe(observed, workload, self._ground.kinds)

    def _demand(self, rate: Rate, doubts: float) -> float:
        """Requests a second to be ready for: those of now, and those at now + cold start."""
        return max(rate.level, rate.ahead.value, rate.recurring) + doubts * rate.doubt

    def _backlog_rps(self, observed: Observation, sizing: Sizing) -> float:
        """What waits beyond a usual queue, to be worked off in the time of a cold start.

        Only while it does not shrink by itself, and nothing is coming: that was asked for because
        of what waits.
        """
        stays = observed.queued_requests >= _SHRINKS * self._queued
        self._stuck = self._stuck + 1 if stays and not any(observed.coming.values()) else 0
        self._queued = observed.queued_requests
        if self._stuck < _STUCK:
            return 0.0
        usual = sizing.reading.rate * observed.serving["prefill"] * self._ground.ttft_s / 2.0
        beyond = max(observed.queued_requests - usual, 0.0)
        return beyond / max(self._lead_s, 4.0 * self._ground.period_s)

    def _need(self, sizing: Sizing, demand_rps: float) -> Need | None:
        """None: nothing is needed."""
        return sizing.need(demand_rps) if demand_rps > 0.0 else None

    def _bounded(self, need: Need | None) -> dict[Role, int]:
        if need is None:
            return {role: self._ground.least[role] for role in ROLES}
        return within(self._ground, need)

    def _target(
        self,
        observed: Observation,
        have: Mapping[Role, int],
        up: Mapping[Role, int],
        keep: Mapping[Role, int],
        held: Mapping[Role, int],
    ) -> dict[Role, int]:
        after = {}
        for role in ROLES:
            count = have[role]
            if up[role] > count:
                count = up[role]
            elif count > keep[role]:
                # Those that wait for GPUs have cost nothing yet: they are called off at once.
                off = min(observed.pending.get(role, 0), count - keep[role])
                count = max(min(count - off, held[role]), keep[role])
            after[role] = self._ground.bounded(role, count)
        return after

    def _flips(
        self,
        observed: Observation,
        have: Mapping[Role, int],
        after: dict[Role, int],
        keep: Mapping[Role, int],
    ) -> dict[Role, int]:
        """Workers that change sides; what they leave is taken off `after`."""
        flips: dict[Role, int] = dict.fromkeys(ROLES, 0)
        if not self._ground.can_flip:
            return flips
        for role in ROLES:
            other: Role = "decode" if role == "prefill" else "prefill"
            short = after[role] - have[role]
            spare = min(
                have[other] - max(keep[other], self._ground.least[other]),
                observed.serving[other] - 1,
            )
            count = min(short, spare)
            if count > 0:
                flips[role] = count
                after[other] = min(after[other], have[other] - count)
        return flips

    def _reason(
        self,
        observed: Observation,
        have: Mapping[Role, int],
        after: Mapping[Role, int],
        flips: Mapping[Role, int],
        basis: _Basis,
    ) -> Reason:
        if any(self._ground.bounded(role, have[role]) != have[role] for role in ROLES):
            return common_pb2.REASON_LIMITS
        more = sum(after.values()) > sum(have.values())
        if any(flips.values()) and not more:
            return common_pb2.REASON_UNBALANCED
        if not more:
            if basis.idle:
                return common_pb2.REASON_IDLE
            if sum(observed.pending.values()) >= sum(have.values()) - sum(after.values()):
                return common_pb2.REASON_CALLED_OFF
            return common_pb2.REASON_SURPLUS
        rate, before = basis.rate, self._sized_for
        if basis.backlog_rps > 0.25 * basis.up_rps:
            return common_pb2.REASON_BACKLOG
        if max(rate.ahead.value, rate.recurring) > 1.05 * rate.level:
            return common_pb2.REASON_DEMAND_EXPECTED
        if before is not None and basis.up_rps < 1.05 * before.up_rps and basis.longer(before):
            return common_pb2.REASON_LENGTHS_CHANGED
        return common_pb2.REASON_DEMAND_GREW

    def _inputs(
        self, observed: Observation, rate: Rate, sizing: Sizing, backlog_rps: float
    ) -> dict[str, float]:
        workload = self._lengths.workload(self._ground.attainment)
        return {
            "arrival_rps": rate.level,
            "arrival_doubt_rps": rate.doubt,
            f"forecast_{rate.ahead.method}_rps": rate.ahead.value,
            "recurring_jump_rps": rate.recurring,
            "lead_s": self._lead_s,
            "queued_requests": float(observed.queued_requests),
            "backlog_rps": backlog_rps,
            "isl_tokens": workload.mean_isl,
            "osl_tokens": workload.mean_osl,
            "cached_share": workload.prefix_hit,
            "prefill_rps_per_worker": sizing.reading.rate,
            "decode_rps_per_worker": sizing.writing.rate,
            "prefill_correction": self._correction.factors["prefill"],
            "decode_correction": self._correction.factors["decode"],
        }

    def _alternatives(
        self,
        have: Mapping[Role, int],
        after: Mapping[Role, int],
        flips: Mapping[Role, int],
        held: Mapping[Role, int],
        up: Mapping[Role, int],
    ) -> tuple[Alternative, ...]:
        found = []
        for role in ROLES:
            other: Role = "decode" if role == "prefill" else "prefill"
            if after[role] > have[role] and not flips[role]:
                why = (
                    f"{other} has {have[other]} and needs them"
                    if self._ground.can_flip
                    else "role_flip is off, or the layouts of the pools differ"
                )
                found.append(Alternative(f"flip {other} workers to {role}", why))
            if after[role] > have[role]:
                found.append(
                    Alternative(f"keep {have[role]} {role} workers", f"{up[role]} are needed")
                )
            if after[role] < have[role] and held[role] > up[role]:
                found.append(
                    Alternative(
                        f"{up[role]} {role} workers",
                        f"up to {held[role]} were needed within the time that a surplus must last",
                    )
                )
        return tuple(found)
