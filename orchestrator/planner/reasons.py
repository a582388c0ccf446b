"""Where the time of a chosen worker goes: which operations, and what bounds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from orchestrator.planner.workload import Workload
from workers.perf.arrays import Floats
from workers.perf.engine_times import PhaseModel
from workers.perf.layouts import Layout, Layouts


@dataclass(frozen=True, slots=True)
class Share:
    """A part of a worker's time: an operation, what bounds it, and its share."""

    operation: str
    bound: str
    share: float

    def __str__(self) -> str:
        return f"{self.operation} ({self.bound}) {self.share:.0%}"


def decode_shares(
    phase: PhaseModel, workload: Workload, layout: Layout, slots: float, drafts: float
) -> tuple[Share, ...]:
    """Parts of a decode step, largest first."""
    one = Layouts.of([layout])
    step = phase.step(
        one,
        np.array([slots]),
        np.array(workload.context),
        np.array(drafts),
        detailed=True,
    )
    return _shares(step.times.parts)


def prefill_shares(
    phase: PhaseModel,
    workload: Workload,
    layout: Layout,
    slots: float,
    chunk: float,
    *,
    drafts: bool,
) -> tuple[Share, ...]:
    """Parts of reading a mean prompt, largest first."""
    isl = workload.mean_isl
    read = phase.read(
        Layouts.of([layout]),
        np.array([slots]),
        isl,
        isl * workload.prefix_hit,
        np.array(chunk),
        drafts=drafts,
        detailed=True,
    )
    return _shares(read.times.parts)


def _shares(parts: Mapping[tuple[str, str], Floats]) -> tuple[Share, ...]:
    seconds = {key: float(np.sum(time_s)) for key, time_s in parts.items()}
    total = sum(seconds.values())
    if total <= 0.0:
        return ()
    shares = [Share(name, bound, spent / total) for (name, bound), spent in seconds.items()]
    return tuple(sorted((one for one in shares if one.share >= 0.005), key=lambda one: -one.share))
