"""How many workers of each kind there should be: where an autoscaling policy goes.

A policy is a pure function of what it observes, called every period with virtual time as it would
be with real time. What decides here is whoever wrote the cluster's file and the scenario.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from router.core.events import Role
from router.core.matching import MatchReport


@dataclass(frozen=True, slots=True)
class Observation:
    """What there is.

    Attributes:
        now_s: since the simulation began.
        queued_requests: in the router.
        running_requests: on workers.
        serving, coming: workers that serve, and those that wait for GPUs or start.
        match: rates since the last observation.
    """

    now_s: float
    queued_requests: int
    running_requests: int
    serving: Mapping[Role, int]
    coming: Mapping[Role, int]
    match: MatchReport


# What is observed, and how many workers were wanted so far, to how many are wanted now.
CountPolicy: TypeAlias = Callable[[Observation, Mapping[Role, int]], Mapping[Role, int]]


def fixed_counts(observed: Observation, wanted: Mapping[Role, int]) -> Mapping[Role, int]:
    """Whatever was wanted is wanted still: workers that die are replaced."""
    del observed
    return wanted
