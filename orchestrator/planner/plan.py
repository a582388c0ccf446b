"""A plan: both layouts, both counts, what they sustain, and the frontier around them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from orchestrator.planner.colocated import (
    ColocatedChoice,
    best_colocated,
    colocated_frontier,
    colocated_points,
)
from orchestrator.planner.infeasible import Obstacle, find_obstacle
from orchestrator.planner.matching import Match, Pairs, gpu_ratio
from orchestrator.planner.pareto import frontier, frontier_by_size
from orchestrator.planner.phases import (
    DecodePoints,
    PrefillPoints,
    Room,
    decode_points,
    prefill_points,
)
from orchestrator.planner.question import Question
from orchestrator.planner.reasons import Share, decode_shares, prefill_shares
from orchestrator.planner.solve import (
    Choice,
    Targets,
    best_for_devices,
    fewest_for_demand,
    pool_of_decode,
    pool_of_prefill,
)
from workers.perf.handoff import (
    egress_bytes_per_s,
    exposed_s,
    ingress_bytes_per_s,
    sharding_devices,
    transfer_of,
)
from workers.perf.layouts import Layout, Layouts
from workers.perf.memory import sequence_bytes, state_bytes, weight_bytes
from workers.perf.speculation import acceptance_lengths

_FRONTIER_POINTS = 28
_WORTH = 1.01


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """One worker of a pool and how many of them. `rate_rps` is what one finishes when never idle.

    `batch` prompts or sequences at once; `memory_bytes` on its fullest device.
    """

    layout: Layout
    count: int
    batch: int
    memory_bytes: float
    weight_bytes: float
    rate_rps: float
    utilisation: float
    link_bound: bool
    shares: tuple[Share, ...]


@dataclass(frozen=True, slots=True)
class Handoff:
    """What one prompt sends, when, and how busy the links are (bytes/s of one sharding device)."""

    bytes_per_request: float
    state_bytes: float
    exposed_s: float
    egress_bytes_per_s: float
    ingress_bytes_per_s: float
    link_bytes_per_s: float


@dataclass(frozen=True, slots=True)
class FrontierPoint:
    """The best that the devices do at an interactivity."""

    tokens_per_s_user: float
    tokens_per_s_gpu: float
    itl_s: float
    gpu_ratio: float
    prefill: str
    decode: str


@dataclass(frozen=True, slots=True)
class Plan:
    """The answer. `obstacle` says what stands in the way of the targets, and then the rest is the
    nearest feasible plan, or absent when there is none at all."""

    question: Question
    obstacle: Obstacle | None
    chosen: Chosen | None
    frontier: tuple[FrontierPoint, ...]
    colocated: ColocatedChoice | None
    colocated_frontier: tuple[tuple[float, float], ...]
    points: int
    prefill_room: Room
    decode_room: Room


@dataclass(frozen=True, slots=True)
class Chosen:
    """The best point for the targets."""

    prefill: WorkerPlan
    decode: WorkerPlan
    chunk_tokens: int
    draft_tokens: int
    acceptance_length: float
    devices: int
    gpu_ratio: float
    balanced_ratio: float
    sustained_rps: float
    tokens_per_s_gpu: float
    tokens_per_s_user: float
    ttft_s: float
    read_s: float
    itl_s: float
    handoff: Handoff
    bound: str


def make_plan(question: Question) -> Plan:
    """Search every candidate and answer."""
    phase, workload = question.phase, question.workload
    prefill, prefill_room = prefill_points(
        phase, workload, question.devices, drafts=question.drafts
    )
    decode, decode_room = decode_points(phase, workload, question.devices, question.drafting)
    colocated = colocated_points(
        phase, workload, question.devices, question.targets, question.drafting
    )
    points = prefill_room.fitting + decode_room.fitting + len(colocated)
    prefill = prefill.take(frontier_by_size(prefill.read_s, prefill.rate, prefill.ranks))
    decode = decode.take(frontier_by_size(decode.itl_s, decode.rate, decode.ranks))
    obstacle = find_obstacle(question, prefill, decode, prefill_room, decode_room)
    targets = question.targets if obstacle is None else obstacle.relaxed
    chosen = None
    if targets is not None:
        chosen = _chosen(question, targets, prefill, decode, obstacle)
    return Plan(
        question=question,
        obstacle=obstacle,
        chosen=chosen,
        frontier=_frontier(question, targets or question.targets, prefill, decode),
        colocated=best_colocated(colocated, question.targets),
        colocated_frontier=tuple(colocated_frontier(colocated, workload.mean_osl)),
        points=points,
        prefill_room=prefill_room,
        decode_room=decode_room,
    )


def _chosen(
    question: Question,
    targets: Targets,
    prefill: PrefillPoints,
    decode: DecodePoints,
    obstacle: Obstacle | None,
) -> Chosen | None:
    demand = question.requests_per_s
    workload = question.workload
    if demand is None or (obstacle is not None and obstacle.field == "requests_per_s"):
        choice = best_for_devices(prefill, decode, workload, question.devices, targets)
        if choice is None:
            return None
        return _describe(question, targets, prefill, decode, choice, choice.sustained_rps)
    found = fewest_for_demand(prefill, decode, workload, demand, targets, np.arange(len(prefill)))
    if found is None:
        return None
    return _describe(question, targets, prefill, decode, found[0], demand)


def _describe(
    question: Question,
    targets: Targets,
    prefill: PrefillPoints,
    decode: DecodePoints,
    choice: Choice,
    demand_rps: float,
) -> Chosen:
    workload, phase = question.workload, question.phase
    p, d = choice.prefill, choice.decode
    reader, decoder = prefill.layouts.at(p), decode.layouts.at(d)
    match = _match(question, targets, prefill, decode, choice, demand_rps)
    drafts = float(decode.drafts[d])
    slots = float(decode.slots[d])
    chunk = float(prefill.chunk[p])
    accepted = float(acceptance_lengths(question.drafting.rate, np.array(drafts)))
    return Chosen(
        prefill=_worker(
            question,
            reader,
            choice.prefill_count,
            float(prefill.slots[p]),
            float(prefill.rate[p]),
            match.prefill_utilisation,
            bool(prefill.link_bound[p]),
            prefill_shares(
                phase,
                workload,
                reader,
                float(prefill.slots[p]),
                chunk,
                drafts=question.drafts,
            ),
            tokens=workload.isl_percentile,
            drafts=question.drafts,
        ),
        decode=_worker(
            question,
            decoder,
            choice.decode_count,
            slots,
            float(decode.rate[d]),
            match.decode_utilisation,
            bool(decode.link_bound[d]),
            decode_shares(phase, workload, decoder, slots, drafts),
            tokens=workload.held,
            drafts=drafts > 0,
        ),
        chunk_tokens=round(chunk),
        draft_tokens=round(drafts),
        acceptance_length=accepted,
        devices=choice.devices,
        gpu_ratio=choice.prefill_count * reader.ranks / (choice.decode_count * decoder.ranks),
        balanced_ratio=gpu_ratio(
            float(prefill.rate[p]) / reader.ranks, float(decode.rate[d]) / decoder.ranks
        ),
        sustained_rps=choice.sustained_rps,
        tokens_per_s_gpu=demand_rps * workload.mean_osl / choice.devices,
        tokens_per_s_user=1.0 / float(decode.itl_s[d]),
        ttft_s=match.ttft_s,
        read_s=float(prefill.read_s[p]),
        itl_s=float(decode.itl_s[d]),
        handoff=_handoff(question, prefill, decode, choice),
        bound=match.bound,
    )


def _match(
    question: Question,
    targets: Targets,
    prefill: PrefillPoints,
    decode: DecodePoints,
    choice: Choice,
    demand_rps: float,
) -> Match:
    one = pool_of_prefill(prefill, choice.prefill)
    other = pool_of_decode(decode, choice.decode, question.workload)
    return Pairs.of(one, other).describe(
        choice.prefill_count, choice.decode_count, demand_rps, targets.ttft_s, targets.percentile
    )


def _worker(
    question: Question,
    layout: Layout,
    count: int,
    batch: float,
    rate: float,
    utilisation: float,
    link_bound: bool,
    shares: tuple[Share, ...],
    *,
    tokens: float,
    drafts: bool,
) -> WorkerPlan:
    model, precision = question.model, question.precision
    one = Layouts.of([layout])
    weights = float(weight_bytes(model, one, precision, drafts=drafts)[0])
    each = float(state_bytes(model, one, precision, tokens, drafts=drafts)[0])
    return WorkerPlan(
        layout=layout,
        count=count,
        batch=round(batch),
        memory_bytes=weights + each * math.ceil(batch / layout.dp),
        weight_bytes=weights,
        rate_rps=rate,
        utilisation=utilisation,
        link_bound=link_bound,
        shares=shares,
    )


def _handoff(
    question: Question, prefill: PrefillPoints, decode: DecodePoints, choice: Choice
) -> Handoff:
    model, workload = question.model, question.workload
    p, d = choice.prefill, choice.decode
    isl = workload.mean_isl
    held = sequence_bytes(model, question.precision, isl)
    last = min(float(prefill.chunk[p]) / max(isl * (1.0 - workload.prefix_hit), 1.0), 1.0)
    sources = sharding_devices(model, prefill.layouts.take(np.array([p])))
    sinks = sharding_devices(model, decode.layouts.take(np.array([d])))
    share = question.efficiency.link
    read_s = np.array([prefill.busy_s[p]])
    step_s = np.array([decode.itl_s[d]])
    return Handoff(
        bytes_per_request=held.total,
        state_bytes=held.state,
        exposed_s=float(
            exposed_s(
                transfer_of(held, last),
                read_s,
                question.hardware,
                share,
                np.minimum(sources, sinks),
            )[0]
        ),
        egress_bytes_per_s=float(
            egress_bytes_per_s(held.total, prefill.slots[[p]], read_s, sources)[0]
        ),
        ingress_bytes_per_s=float(
            ingress_bytes_per_s(held.total, decode.slots[[d]], step_s, workload.decoded, sinks)[0]
        ),
        link_bytes_per_s=question.hardware.scale_out_bytes_per_s * share,
    )


def _frontier(
    question: Question, targets: Targets, prefill: PrefillPoints, decode: DecodePoints
) -> tuple[FrontierPoint, ...]:
    """The best plans at rising interactivity; every point meets the TTFT target with its waits."""
    kept = frontier(decode.itl_s, decode.rate / decode.ranks)
    if not len(kept):
        return ()
    itl_s = decode.itl_s[kept]
    levels = np.geomspace(itl_s[0], itl_s[-1], _FRONTIER_POINTS)
    wanted = np.unique(np.searchsorted(itl_s, levels * (1.0 + 1e-9), side="right") - 1)
    rows: list[FrontierPoint] = []
    for level in itl_s[wanted]:
        at = replace(targets, itl_s=float(level))
        choice = best_for_devices(prefill, decode, question.workload, question.devices, at)
        if choice is None:
            continue
        reader, decoder = prefill.layouts.at(choice.prefill), decode.layouts.at(choice.decode)
        ratio = choice.prefill_count * reader.ranks / (choice.decode_count * decoder.ranks)
        reached_s = float(decode.itl_s[choice.decode])
        rows.append(
            FrontierPoint(
                tokens_per_s_user=1.0 / reached_s,
                tokens_per_s_gpu=choice.sustained_rps * question.workload.mean_osl / choice.devices,
                itl_s=reached_s,
                gpu_ratio=ratio,
                prefill=f"{choice.prefill_count} x ({reader})",
                decode=f"{choice.decode_count} x ({decoder})",
            )
        )
    if not rows:
        return ()
    best = frontier(
        np.array([row.itl_s for row in rows]), np.array([row.tokens_per_s_gpu for row in rows])
    )
    kept_rows: list[FrontierPoint] = []
    for index in best:
        # Slower for hardly more is no choice that anyone would make.
        if not kept_rows or rows[index].tokens_per_s_gpu > _WORTH * kept_rows[-1].tokens_per_s_gpu:
            kept_rows.append(rows[index])
    return tuple(reversed(kept_rows))
