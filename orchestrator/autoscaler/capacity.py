"""What one worker does of the observed traffic: the performance model, corrected by measurements.

    prefill rate = 1 / mean time to read a prompt
    decode rate  = slots in use at the ITL target / (time of the prompt there + time of the answer)

in requests a second, each held to what its links carry. Memory is counted as the router counts it:
a decode worker holds prompt and whole answer from the moment at which the prompt begins to be read.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from orchestrator.planner.workload import Workload
from orchestrator.simulator.cluster import WorkerKind
from workers.perf.arrays import Floats

_ITERATIONS = 4


@dataclass(frozen=True, slots=True)
class Reading:
    """A prefill worker: requests a second, and how long each kind of prompt is read."""

    rate: float
    seconds: Floats
    weights: Floats
    mean_s: float
    scv: float


@dataclass(frozen=True, slots=True)
class Writing:
    """A decode worker: requests a second, slots of one worker, and how long one is taken."""

    rate: float
    slots: float
    hold_s: float
    itl_s: float
    scv: float


def read_s(kind: WorkerKind, tokens: float, cached: float = 0.0) -> float:
    """Seconds to read a prompt of which `cached` tokens are there, chunk by chunk."""
    seconds, done = 0.0, cached
    while done < tokens:
        chunk = min(float(kind.step_tokens), tokens - done)
        seconds += kind.times.step_s(0, 0.0, chunk, done + chunk / 2.0)
        done += chunk
    return seconds


def reading(kind: WorkerKind, workload: Workload, factor: float = 1.0) -> Reading:
    """What a prefill worker does; `factor` is its measured rate over the predicted one."""
    hit = workload.prefix_hit
    seconds = np.array([read_s(kind, one, one * hit) for one in workload.isl]) / factor
    mean_s = max(float(np.sum(seconds * workload.weights)), 1e-9)
    scv = float(np.sum(seconds**2 * workload.weights)) / mean_s**2 - 1.0
    sent = kind.times.handoff_bytes(workload.mean_isl)
    rate = 1.0 / mean_s
    if sent > 0.0:
        rate = min(rate, kind.out_bytes_per_s / sent)
    return Reading(rate, seconds, workload.weights, mean_s, max(scv, 0.0))


def writing(
    kind: WorkerKind,
    workload: Workload,
    itl_s: float,
    prompt_s: float,
    factor: float = 1.0,
) -> Writing:
    """What a decode worker does within an ITL target.

    Args:
        prompt_s: for how long a slot is held before its request decodes.
        factor: measured steps a second over predicted ones.
    """
    accepted = kind.times.acceptance_length
    # Who is first in the queue waits until there is room for all of it, and a few long requests
    # take the place of many: room for a long one stays free, and by Hayward's approximation
    # (Fredericks, 1980) what is left counts as so many fewer, larger places.
    longest = workload.isl_percentile + workload.held - workload.mean_isl
    room = max(kind.kv_tokens - longest, workload.held)
    peaked = 1.0 + max(workload.isl_scv, 0.0) * (workload.mean_isl / workload.held) ** 2
    most = min(float(kind.max_requests), room / workload.held / peaked)
    slots = decoding = max(most, 1.0)
    step_s = hold_s = 0.0
    for _ in range(_ITERATIONS):
        decoding = _within(kind, workload.context, itl_s * accepted * factor, decoding)
        step_s = kind.times.step_s(int(decoding), decoding * workload.context) / factor
        answer_s = step_s / accepted * workload.decoded
        hold_s = answer_s + prompt_s
        # Of the slots in use only these decode.
        share = answer_s / hold_s
        slots = min(most, decoding / share)
        decoding = max(slots * share, 1.0)
    rate = slots / hold_s
    moved = kind.times.handoff_bytes(workload.mean_isl)
    if moved > 0.0:
        rate = min(rate, kind.in_bytes_per_s / moved)
    return Writing(rate, slots, hold_s, step_s / accepted, workload.osl_scv)


def _within(kind: WorkerKind, context: float, budget_s: float, most: float) -> float:
    """The most requests that a step may decode within a time, at least one."""
    low, high = 1.0, most
    if kind.times.step_s(int(high), high * context) <= budget_s:
        return high
    while high - low > 0.5:
        middle = (low + high) / 2.0
        if kind.times.step_s(int(middle), middle * context) <= budget_s:
            low = middle
        else:
            high = middle
    return low
