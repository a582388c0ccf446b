"""The alternative: workers that read prompts and decode in the same steps (chunked prefill).

A step decodes every sequence of the batch, and in the share x of steps that the traffic asks for
it also reads a chunk of prompts, which makes it longer for all (SARATHI, arXiv 2308.16369). Each
answer's decoded / AL steps bring ISL tokens to read, so x = B AL ISL / (decoded chunk), and the
mean step is x T(chunk) + (1 - x) T(0).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from orchestrator.planner.candidates import prefill_layouts
from orchestrator.planner.pareto import frontier
from orchestrator.planner.phases import Drafting, fitting_layouts
from orchestrator.planner.queueing import percentile_wait_s
from orchestrator.planner.solve import Targets
from orchestrator.planner.workload import Workload
from workers.perf.arrays import Floats
from workers.perf.engine_times import PhaseModel
from workers.perf.layouts import Layout, Layouts
from workers.perf.speculation import acceptance_lengths

_BATCHES = np.unique(np.round(2.0 ** np.arange(0.0, 10.01, 0.5)))
_CHUNKS = (512.0, 2048.0, 8192.0)


@dataclass(frozen=True, slots=True, eq=False)
class ColocatedPoints:
    """Candidates on all devices, those alone that meet the TTFT target; arrays of one length.

    `itl_s` is the mean over all steps, `chunk_itl_s` that of the steps which also read a chunk.
    """

    layouts: Layouts
    slots: Floats
    chunk: Floats
    drafts: Floats
    itl_s: Floats
    chunk_itl_s: Floats
    ttft_s: Floats
    devices: Floats
    rps: Floats

    def __len__(self) -> int:
        return len(self.slots)


@dataclass(frozen=True, slots=True)
class ColocatedChoice:
    """The best of them for the targets."""

    layout: Layout
    count: int
    slots: float
    chunk_tokens: float
    draft_tokens: int
    itl_s: float
    chunk_itl_s: float
    ttft_s: float
    devices: int
    sustained_rps: float


def colocated_points(
    phase: PhaseModel,
    workload: Workload,
    devices: int,
    targets: Targets,
    drafting: Drafting,
) -> ColocatedPoints:
    """Evaluate colocated serving on `devices` devices."""
    layouts = prefill_layouts(phase.model, devices, phase.hardware.domain)
    layouts, most, _ = fitting_layouts(
        phase, layouts, workload.held, drafts=max(drafting.lengths) > 0
    )
    grid = layouts.column()
    slots = _BATCHES[None, :] * grid.dp * grid.pp
    fits = slots <= most[:, None]
    fresh = max(workload.mean_isl * (1.0 - workload.prefix_hit), 1.0)
    longest = max(workload.isl_percentile * (1.0 - workload.prefix_hit), 1.0)
    reach = np.asarray(workload.mean_isl - fresh / 2.0)
    context = np.array(workload.context)
    count = np.floor(devices / grid.ranks)
    columns: list[tuple[Floats, ...]] = []
    for length in drafting.lengths:
        drafts = np.array(float(length))
        accepted = float(acceptance_lengths(drafting.rate, drafts))
        alone_s = phase.step(grid, slots, context, drafts).step_s
        for chunk in sorted({min(chunk, longest) for chunk in _CHUNKS}):
            tokens = chunk * grid.dp.astype(np.float64)
            both_s = phase.step(
                grid, slots, context, drafts, prompt_tokens=tokens, prompt_context=reach
            ).step_s
            share = slots * accepted * fresh / (workload.decoded * tokens * grid.pp)
            mean_s = share * both_s + (1.0 - share) * alone_s
            mean_read_s = max(fresh / chunk, 1.0) * both_s
            wait_s = percentile_wait_s(
                count * grid.dp, share, mean_read_s, workload.isl_scv, targets.percentile
            )
            ttft_s = wait_s + np.ceil(longest / chunk) * both_s
            good = fits & (share < 1.0) & (ttft_s <= targets.ttft_s)
            rps = count * slots * accepted / (mean_s * workload.decoded)
            values = (
                slots,
                np.asarray(chunk),
                drafts,
                mean_s / accepted,
                both_s / accepted,
                ttft_s,
                count * grid.ranks,
                rps,
            )
            rows = np.nonzero(good)[0].astype(np.float64)
            columns.append((rows, *(np.broadcast_to(one, good.shape)[good] for one in values)))
    rows, *found = (np.concatenate(column) for column in zip(*columns, strict=True))
    return ColocatedPoints(layouts.take(rows.astype(np.int64)), *found)


def best_colocated(points: ColocatedPoints, targets: Targets) -> ColocatedChoice | None:
    """The candidate that serves the most requests a second within the targets."""
    good = points.itl_s <= targets.itl_s
    if not np.any(good):
        return None
    index = int(np.argmax(np.where(good, points.rps, -1.0)))
    layout = points.layouts.at(index)
    return ColocatedChoice(
        layout=layout,
        count=int(points.devices[index]) // layout.ranks,
        slots=float(points.slots[index]),
        chunk_tokens=float(points.chunk[index]),
        draft_tokens=int(points.drafts[index]),
        itl_s=float(points.itl_s[index]),
        chunk_itl_s=float(points.chunk_itl_s[index]),
        ttft_s=float(points.ttft_s[index]),
        devices=int(points.devices[index]),
        sustained_rps=float(points.rps[index]),
    )


def colocated_frontier(points: ColocatedPoints, osl: float) -> list[tuple[float, float]]:
    """(tokens/s/user, tokens/s/GPU) of the candidates that no other beats, from slow to quick."""
    if not len(points):
        return []
    per_gpu = points.rps * osl / points.devices
    kept = frontier(points.itl_s, per_gpu)
    return [(1.0 / float(points.itl_s[i]), float(per_gpu[i])) for i in kept[::-1]]
