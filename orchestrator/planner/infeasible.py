"""Why no plan meets a question's targets, and the nearest one that would."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from orchestrator.planner.candidates import decode_layouts
from orchestrator.planner.phases import (
    DecodePoints,
    PrefillPoints,
    Room,
    fitting_layouts,
)
from orchestrator.planner.question import Question
from orchestrator.planner.solve import Targets, best_for_devices, fewest_for_demand
from workers.perf.arrays import Booleans, Floats, Integers
from workers.perf.memory import RESERVED_SHARE

_SLACK = 1.0 + 1e-9
# A wait is never zero under random arrivals: just above the time of reading, hardly any load fits.
_ROOM_FOR_WAITING = 1.25


@dataclass(frozen=True, slots=True)
class Obstacle:
    """The constraint that fails.

    `nearest` is the value of `field` that would do, None when no value does; `relaxed` are the
    targets of the nearest feasible plan on the same devices, None when there is none on them.
    """

    field: str
    message: str
    nearest: float | None
    relaxed: Targets | None


def find_obstacle(
    question: Question,
    prefill: PrefillPoints,
    decode: DecodePoints,
    prefill_room: Room,
    decode_room: Room,
) -> Obstacle | None:
    """The first constraint that fails, in the order memory, ITL, TTFT, devices, demand; or None."""
    if not len(prefill) or not len(decode):
        return _memory(question, prefill_room, decode_room)
    return _latency(question, prefill, decode) or _demand(question, prefill, decode)


def _memory(question: Question, prefill_room: Room, decode_room: Room) -> Obstacle:
    usable = question.hardware.memory_bytes * (1.0 - RESERVED_SHARE)
    least = max(prefill_room.least_bytes, decode_room.least_bytes)
    nearest = _devices_for_memory(question)
    advice = (
        "no number of these devices does; use narrower weights or shorter contexts"
        if nearest is None
        else f"{nearest:,.0f} devices or more would do"
    )
    return Obstacle(
        field="gpus",
        message=(
            f"memory: {question.model.name} in {question.precision.name} with one request of "
            f"{question.workload.held:.0f} tokens needs {least / 1e9:.1f} GB of each of "
            f"{question.devices} {question.hardware.name}, which leave {usable / 1e9:.1f} GB; "
            + advice
        ),
        nearest=nearest,
        relaxed=None,
    )


def _devices_for_memory(question: Question) -> float | None:
    """Twice the smallest instance that holds the model: one for each pool."""
    phase = question.phase
    for size in (1, 2, 4, 8, 16, 32, 64):
        layouts = decode_layouts(question.model, size, question.hardware.domain)
        fitting, _, _ = fitting_layouts(
            phase, layouts, question.workload.held, drafts=question.drafts
        )
        if len(fitting):
            return 2.0 * float(np.min(fitting.ranks))
    return None


def _latency(question: Question, prefill: PrefillPoints, decode: DecodePoints) -> Obstacle | None:
    targets, devices = question.targets, question.devices
    soon = prefill.read_s <= targets.ttft_s
    quick = decode.itl_s <= targets.itl_s
    if not np.any(quick):
        left = devices - _smallest(prefill.ranks, soon)
        itl_s = _least(decode.itl_s, decode.ranks <= left)
        return Obstacle(
            "itl_ms",
            f"ITL: the quickest decode step takes {np.min(decode.itl_s) * 1e3:.2f} ms a token, "
            f"above the target of {targets.itl_s * 1e3:g} ms",
            itl_s * 1e3,
            _widened(question, prefill, decode, replace(targets, itl_s=itl_s * _SLACK)),
        )
    if not np.any(soon):
        left = devices - _smallest(decode.ranks, quick)
        ttft_s = _least(prefill.read_s, prefill.ranks <= left) * _ROOM_FOR_WAITING
        return Obstacle(
            "ttft_ms",
            f"TTFT: reading a prompt of {question.workload.isl_percentile:.0f} tokens takes at "
            f"least {np.min(prefill.read_s) * 1e3:.1f} ms without any wait, above the target of "
            f"{targets.ttft_s * 1e3:g} ms",
            ttft_s * 1e3,
            _widened(question, prefill, decode, replace(targets, ttft_s=ttft_s)),
        )
    if best_for_devices(prefill, decode, question.workload, devices, targets) is None:
        p, d = _smallest(prefill.ranks, soon), _smallest(decode.ranks, quick)
        return Obstacle(
            "gpus",
            f"devices: the targets take {p} for prefill and {d} for decode at once, more than "
            f"{devices}",
            float(p + d),
            _relaxed_on_devices(question, prefill, decode),
        )
    return None


def _smallest(ranks: Integers, allowed: Booleans) -> int:
    """Devices of the smallest allowed instance, or of the smallest at all."""
    return int(np.min(ranks[allowed])) if np.any(allowed) else int(np.min(ranks))


def _least(times_s: Floats, fitting: Booleans) -> float:
    """The shortest time of an instance that fits, or at all."""
    return float(np.min(times_s[fitting])) if np.any(fitting) else float(np.min(times_s))


def _widened(
    question: Question, prefill: PrefillPoints, decode: DecodePoints, targets: Targets
) -> Targets | None:
    """Targets with one of them relaxed, if a plan exists under them; else with both."""
    found = best_for_devices(prefill, decode, question.workload, question.devices, targets)
    return targets if found else _relaxed_on_devices(question, prefill, decode)


def _relaxed_on_devices(
    question: Question, prefill: PrefillPoints, decode: DecodePoints
) -> Targets | None:
    """The least relaxation of both targets by one factor that the devices can meet."""
    targets = question.targets
    for factor in 2.0 ** np.arange(0.25, 12.01, 0.25):
        wider = replace(targets, ttft_s=targets.ttft_s * factor, itl_s=targets.itl_s * factor)
        if best_for_devices(prefill, decode, question.workload, question.devices, wider):
            return wider
    return None


def _demand(question: Question, prefill: PrefillPoints, decode: DecodePoints) -> Obstacle | None:
    demand = question.requests_per_s
    if demand is None:
        return None
    targets, workload = question.targets, question.workload
    found = fewest_for_demand(prefill, decode, workload, demand, targets, np.arange(len(prefill)))
    if found is not None and found[0].devices <= question.devices:
        return None
    best = best_for_devices(prefill, decode, workload, question.devices, targets)
    sustained = 0.0 if best is None else best.sustained_rps
    needed = "" if found is None else f"; {found[0].devices} devices would serve it"
    return Obstacle(
        "requests_per_s",
        f"demand: {question.devices} {question.hardware.name} sustain {sustained:.2f} requests/s "
        f"within the targets, not {demand:g}{needed}",
        sustained,
        targets,
    )
