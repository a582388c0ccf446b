"""Knows the future: the fewest GPU-hours that a schedule of counts needs, as a yardstick.

The requests of the trace are cut into windows. What a window needs is found from its own requests
with the model that sizes pools, for work that arrives exactly as it will. A worker is there when a
window needs one, and stays between two windows if starting it again would cost as much: the gap is
no longer than a cold start. `headroom` is on top of the fluid demand; `search.py` finds the least
with which the attainment is reached.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.autoscaler.decisions import Decision
from orchestrator.autoscaler.ground import Ground
from orchestrator.autoscaler.observation import ROLES, Change, Observation
from orchestrator.planner.workload import sampled
from orchestrator.simulator.trace import TraceRequest
from protos.tandem.v1 import common_pb2
from router.core.events import Role


@dataclass(frozen=True, slots=True)
class Window:
    """From when to when, and the workers that its load amounts to."""

    begin_s: float
    end_s: float
    load: dict[Role, float]


def windows_of(
    trace: Sequence[TraceRequest], ground: Ground, window_s: float, cached_share: float
) -> list[Window]:
    """The load of each window in workers that are busy all the time.

    A request loads prefill when it comes, and decode from then on for as long as it is answered.
    """
    end_s = trace[-1].at_s + window_s
    count = math.ceil(end_s / window_s)
    at = np.array([one.at_s for one in trace])
    order = np.searchsorted(at, np.arange(1, count) * window_s)
    groups = np.split(np.arange(len(trace)), order)
    prefill, decode = np.zeros(count), np.zeros(count)
    for index, group in enumerate(groups):
        if not len(group):
            continue
        requests = [trace[number] for number in group]
        workload = sampled(
            [one.prompt_tokens for one in requests],
            [one.answer_tokens for one in requests],
            percentile=ground.attainment,
            prefix_hit=cached_share,
        )
        one, other = ground.workers(workload)
        rate = len(group) / window_s
        prefill[index] += rate / one.rate
        # Decode is busy with these for as long as a slot is held.
        share = 1.0 / (other.rate * other.hold_s)
        for number in group:
            request = trace[number]
            stay_s = other.hold_s * max(request.answer_tokens - 1, 1) / workload.decoded
            first = at[number]
            last = min(first + stay_s, end_s)
            for window in range(int(first / window_s), int(last / window_s) + 1):
                begin_s = window * window_s
                inside = min(last, begin_s + window_s) - max(first, begin_s)
                if inside > 0.0 and window < count:
                    decode[window] += share * inside / window_s
    return [
        Window(
            index * window_s,
            (index + 1) * window_s,
            {"prefill": float(prefill[index]), "decode": float(decode[index])},
        )
        for index in range(count)
    ]


class Oracle:
    """Counts from a schedule that was made with the whole trace in hand."""

    name = "oracle"

    def __init__(self, ground: Ground, windows: Sequence[Window], headroom: float) -> None:
        self._ground = ground
        self._window_s = windows[0].end_s - windows[0].begin_s
        self._needs = {
            role: [ground.bounded(role, whole_workers(one.load[role], headroom)) for one in windows]
            for role in ROLES
        }
        self._numbers = itertools.count(1)

    def counts(self, now_s: float) -> dict[Role, int]:
        """What must be wanted now: the most needed from now until a cold start from now."""
        first = int(now_s / self._window_s)
        ahead_s = now_s + self._ground.cold_start_s + self._ground.period_s
        last = int(ahead_s / self._window_s)
        return {
            role: max(needs[first : last + 1], default=self._ground.least[role])
            for role, needs in self._needs.items()
        }

    def __call__(self, observed: Observation, wanted: Mapping[Role, int]) -> Change:
        after = self.counts(observed.now_s)
        if after == dict(wanted):
            return Change(wanted)
        number = next(self._numbers)
        reason = common_pb2.REASON_POLICY_RULE
        decision = Decision(number, observed.now_s, self.name, reason, dict(wanted), after)
        return Change(after, decision=decision)


def whole_workers(load: float, headroom: float) -> int:
    """Workers for a load: some share more, and the square root that randomness asks for.

    The square-root rule of staffing (Halfin and Whitt, 1981): load + headroom * sqrt(load).
    """
    return math.ceil(load + headroom * math.sqrt(load) - 1e-9)
