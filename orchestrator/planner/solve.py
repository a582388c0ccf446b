"""Chooses both layouts and both counts together, within a number of devices or for a demand.

Exact over the candidates: an instance size needs only its frontier of candidates, and pairs are
tried from the highest capacity down until no capacity left can beat the best sustained rate.
`exhaustive` tries everything and is what the bench compares with.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from orchestrator.planner.matching import Match, Pairs, Pool, counts_for_demand, splits
from orchestrator.planner.pareto import best_by_size
from orchestrator.planner.phases import DecodePoints, PrefillPoints
from orchestrator.planner.workload import Workload
from workers.perf.arrays import Floats, Integers

_BLOCK = 256


@dataclass(frozen=True, slots=True)
class Targets:
    """What was promised: TTFT that a share `percentile` of requests stays within, and mean ITL."""

    ttft_s: float
    itl_s: float
    percentile: float = 0.95


@dataclass(frozen=True, slots=True)
class Choice:
    """Indices of a prefill and a decode candidate, how many of each, and what they sustain."""

    prefill: int
    decode: int
    prefill_count: int
    decode_count: int
    sustained_rps: float
    devices: int


def pool_of_prefill(points: PrefillPoints, index: int) -> Pool:
    """One candidate as a worker."""
    return Pool(
        rate=float(points.rate[index]),
        ranks=int(points.ranks[index]),
        slots=float(points.slots[index]),
        service_s=float(points.busy_s[index]),
        scv=float(points.scv[index]),
        latency_s=float(points.read_s[index]),
    )


def pool_of_decode(points: DecodePoints, index: int, workload: Workload) -> Pool:
    """One candidate as a worker; a slot is taken for a whole answer."""
    return Pool(
        rate=float(points.rate[index]),
        ranks=int(points.ranks[index]),
        slots=float(points.slots[index]),
        service_s=float(points.itl_s[index]) * workload.decoded,
        scv=workload.osl_scv,
    )


def best_for_devices(
    prefill: PrefillPoints,
    decode: DecodePoints,
    workload: Workload,
    devices: int,
    targets: Targets,
) -> Choice | None:
    """The choice that sustains the most requests a second within the targets and devices."""
    allowed = decode.itl_s <= targets.itl_s
    chosen = best_by_size(decode.rate, decode.ranks, allowed)
    readers = np.nonzero(prefill.read_s <= targets.ttft_s)[0]
    return _best(prefill, decode, readers, chosen, workload, devices, targets)


def exhaustive(
    prefill: PrefillPoints,
    decode: DecodePoints,
    workload: Workload,
    devices: int,
    targets: Targets,
) -> Choice | None:
    """The same from every candidate that meets the targets alone and every pair of counts."""
    best: Choice | None = None
    readers = np.nonzero(prefill.read_s <= targets.ttft_s)[0]
    for index in np.nonzero(decode.itl_s <= targets.itl_s)[0]:
        size = int(decode.ranks[index])
        for count in range(1, devices // size + 1):
            left = devices - count * size
            one = readers[prefill.ranks[readers] <= left]
            if not len(one):
                continue
            repeated = np.full(len(one), index)
            pairs = _pairs(prefill, decode, one, repeated, workload)
            n_p = np.floor(left / prefill.ranks[one])
            n_d = np.full(len(one), float(count))
            if best is not None:
                # A pair whose capacity is lower cannot win; this bound drops nothing that could.
                able = np.nonzero(pairs.capacity(n_p, n_d) > best.sustained_rps)[0]
                if not len(able):
                    continue
                pairs, one, n_p, n_d = pairs.take(able), one[able], n_p[able], n_d[able]
            rates = pairs.sustained(n_p, n_d, targets.ttft_s, targets.percentile)
            top = int(np.argmax(rates))
            if rates[top] > 0.0 and (best is None or rates[top] > best.sustained_rps):
                used = int(n_p[top]) * int(prefill.ranks[one[top]]) + count * size
                best = Choice(
                    int(one[top]), int(index), int(n_p[top]), count, float(rates[top]), used
                )
    return best


def fewest_for_demand(
    prefill: PrefillPoints,
    decode: DecodePoints,
    workload: Workload,
    demand_rps: float,
    targets: Targets,
    kept: Integers,
) -> tuple[Choice, Match] | None:
    """The choice with the fewest devices that serves a demand within the targets.

    Args:
        kept: prefill candidates worth trying, such as their frontier.
    """
    best: tuple[Choice, Match] | None = None
    allowed = decode.itl_s <= targets.itl_s
    for d in best_by_size(decode.rate, decode.ranks, allowed):
        least_d = np.floor(demand_rps / decode.rate[d] + 1.0) * decode.ranks[d]
        for p in kept:
            least_p = np.floor(demand_rps / prefill.rate[p] + 1.0) * prefill.ranks[p]
            if prefill.read_s[p] > targets.ttft_s:
                continue
            if best is not None and least_d + least_p >= best[0].devices:
                continue
            one, other = pool_of_prefill(prefill, p), pool_of_decode(decode, d, workload)
            match = counts_for_demand(
                demand_rps, one, other, ttft_s=targets.ttft_s, percentile=targets.percentile
            )
            if match is None:
                continue
            used = match.prefill * one.ranks + match.decode * other.ranks
            if best is None or used < best[0].devices:
                counts = match.prefill, match.decode
                best = Choice(int(p), int(d), *counts, match.sustained_rps, used), match
    return best


def _best(
    prefill: PrefillPoints,
    decode: DecodePoints,
    readers: Integers,
    deciders: Integers,
    workload: Workload,
    devices: int,
    targets: Targets,
) -> Choice | None:
    p, d, n_p, n_d = _combinations(prefill, decode, readers, deciders, devices)
    if not len(p):
        return None
    pairs = _pairs(prefill, decode, p, d, workload)
    capacity = pairs.capacity(n_p, n_d)
    used = n_p * prefill.ranks[p] + n_d * decode.ranks[d]
    order = np.lexsort((used, -capacity))
    best: Choice | None = None
    for begin in range(0, len(order), _BLOCK):
        block = order[begin : begin + _BLOCK]
        if best is not None and capacity[block[0]] <= best.sustained_rps:
            break
        rates = pairs.take(block).sustained(
            n_p[block], n_d[block], targets.ttft_s, targets.percentile
        )
        top = int(np.argmax(rates))
        if rates[top] > (0.0 if best is None else best.sustained_rps):
            i = block[top]
            best = Choice(
                int(p[i]), int(d[i]), int(n_p[i]), int(n_d[i]), float(rates[top]), int(used[i])
            )
    return best


def _combinations(
    prefill: PrefillPoints,
    decode: DecodePoints,
    readers: Integers,
    deciders: Integers,
    devices: int,
) -> tuple[Integers, Integers, Floats, Floats]:
    """All pairs of candidates with all splits of the devices."""
    rows: list[tuple[Integers, Integers, Floats, Floats]] = []
    p_ranks, d_ranks = prefill.ranks, decode.ranks
    for d in deciders:
        for p in readers:
            n_p, n_d = splits(
                devices, int(p_ranks[p]), int(d_ranks[d]), prefill.rate[p], decode.rate[d]
            )
            if len(n_d):
                rows.append((np.full(len(n_d), p), np.full(len(n_d), d), n_p, n_d))
    if not rows:
        none: Integers = np.zeros(0, dtype=np.int64)
        return none, none, np.zeros(0), np.zeros(0)
    p, d, n_p, n_d = (np.concatenate(column) for column in zip(*rows, strict=True))
    return p, d, n_p, n_d


def _pairs(
    prefill: PrefillPoints, decode: DecodePoints, p: Integers, d: Integers, workload: Workload
) -> Pairs:
    return Pairs(
        prefill.rate[p],
        prefill.slots[p],
        prefill.busy_s[p],
        prefill.scv[p],
        prefill.read_s[p],
        decode.rate[d],
        decode.slots[d],
        decode.itl_s[d] * workload.decoded,
        np.full(len(d), workload.osl_scv),
    )
