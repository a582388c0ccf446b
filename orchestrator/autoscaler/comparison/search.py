"""Looks for the best clairvoyant policies by simulating candidates: fixed counts, and a schedule.

Best means the fewest GPU-hours with which the wanted share of requests meets its targets. Both
searches walk from a guess of the performance model in steps of one worker or one notch of headroom,
and stop where the next cheaper candidate misses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from orchestrator.autoscaler.comparison.runs import Figures, run, run_fixed
from orchestrator.autoscaler.ground import Ground
from orchestrator.autoscaler.observation import ROLES
from orchestrator.autoscaler.oracle import Oracle, Window, whole_workers, windows_of
from orchestrator.simulator.cluster import Cluster
from orchestrator.simulator.trace import TraceRequest
from router.core.events import Role

WINDOW_S = 10.0
_HEADROOMS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.5)
_MOST_TRIES = 8

Say = Callable[[str], object]


def best_oracle(
    cluster: Cluster, trace: Sequence[TraceRequest], ground: Ground, cached_share: float, say: Say
) -> tuple[Oracle, Figures]:
    """The schedule with the least headroom that attains; the most headroom if none does."""
    windows = windows_of(trace, ground, WINDOW_S, cached_share)
    for headroom in _HEADROOMS:
        oracle = Oracle(ground, windows, headroom)
        figures = run(cluster, trace, oracle, "oracle", ground, oracle.counts(0.0))
        say(f"oracle, headroom {headroom}: {figures.attainment:.4f}")
        if figures.attainment >= ground.attainment:
            break
    return oracle, figures


def static_best(
    cluster: Cluster, trace: Sequence[TraceRequest], ground: Ground, cached_share: float, say: Say
) -> tuple[dict[Role, int], Figures]:
    """The fewest fixed counts that attain. The counts of each role are lowered in turn."""
    windows = windows_of(trace, ground, WINDOW_S, cached_share)
    counts = {role: _busiest(windows, role, ground) for role in ROLES}

    def attempt(tried: dict[Role, int]) -> Figures:
        figures = run_fixed(cluster, trace, ground, tried)
        say(f"static {tried['prefill']} + {tried['decode']}: {figures.attainment:.4f}")
        return figures

    best = attempt(counts)
    tries = 1
    while best.attainment < ground.attainment and tries < _MOST_TRIES:
        counts = {role: count + math.ceil(count / 8) for role, count in counts.items()}
        best, tries = attempt(counts), tries + 1
    for role in ROLES:
        while counts[role] > 1 and tries < _MOST_TRIES:
            fewer = {**counts, role: counts[role] - 1}
            figures, tries = attempt(fewer), tries + 1
            if figures.attainment < ground.attainment:
                break
            counts, best = fewer, figures
    return counts, best


def _busiest(windows: Sequence[Window], role: Role, ground: Ground) -> int:
    """Workers for a load that all but a few windows stay below."""
    loads = sorted(window.load[role] for window in windows)
    load = loads[min(int(len(loads) * ground.attainment), len(loads) - 1)]
    return ground.bounded(role, whole_workers(load, 0.25))
