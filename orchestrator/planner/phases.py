"""Evaluates all candidates of a phase: how fast, how many requests a second, does it fit.

A candidate is a layout with a batch and, for decode, a draft length; for prefill, a chunk size.
Arrays are [layouts, batches] for each draft length or chunk size, then laid side by side.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from orchestrator.planner.candidates import decode_layouts, prefill_layouts
from orchestrator.planner.workload import Workload
from workers.perf.arrays import Booleans, Floats, Integers
from workers.perf.engine_times import PhaseModel
from workers.perf.handoff import prompts_per_s, sharding_devices
from workers.perf.layouts import Layouts
from workers.perf.memory import (
    RESERVED_SHARE,
    largest_batch,
    sequence_bytes,
    state_bytes,
    weight_bytes,
)
from workers.perf.speculation import acceptance_lengths

_BATCHES = np.unique(np.round(2.0 ** np.arange(0.0, 11.01, 0.25)))
_PREFILL_BATCHES = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
_CHUNKS = (1024.0, 2048.0, 8192.0, 32768.0)


@dataclass(frozen=True, slots=True)
class Drafting:
    """Draft lengths to try, and the rate at which a draft is accepted."""

    lengths: tuple[int, ...] = (0,)
    rate: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class DecodePoints:
    """Decode candidates that fit in memory, one element each.

    Attributes:
        layouts: of the instances.
        slots: sequences that an instance decodes at once.
        drafts: draft tokens.
        step_s: from one window of a sequence to the next; `itl_s` from token to token on average.
        rate: requests a second that an instance finishes, its link included.
        link_bound: whether the link and not decode limits `rate`.
    """

    layouts: Layouts
    slots: Floats
    drafts: Floats
    step_s: Floats
    itl_s: Floats
    rate: Floats
    link_bound: Booleans

    def __len__(self) -> int:
        return len(self.slots)

    def take(self, chosen: Integers | Booleans) -> DecodePoints:
        """Those at some indices."""
        return DecodePoints(
            self.layouts.take(chosen),
            *(getattr(self, field.name)[chosen] for field in fields(self)[1:]),
        )

    @property
    def ranks(self) -> Integers:
        return self.layouts.ranks


@dataclass(frozen=True, slots=True, eq=False)
class PrefillPoints:
    """Prefill candidates that fit in memory, one element each.

    Attributes:
        slots: prompts that an instance reads at once.
        chunk: tokens of a prompt in one pass.
        read_s: reading a prompt of the workload's percentile, without waiting.
        busy_s: how long a batch keeps the instance on average; `scv` its variation over prompts.
        rate: requests a second that an instance reads, its link included.
    """

    layouts: Layouts
    slots: Floats
    chunk: Floats
    read_s: Floats
    busy_s: Floats
    scv: Floats
    rate: Floats
    link_bound: Booleans

    def __len__(self) -> int:
        return len(self.slots)

    def take(self, chosen: Integers | Booleans) -> PrefillPoints:
        """Those at some indices."""
        return PrefillPoints(
            self.layouts.take(chosen),
            *(getattr(self, field.name)[chosen] for field in fields(self)[1:]),
        )

    @property
    def ranks(self) -> Integers:
        return self.layouts.ranks


@dataclass(frozen=True, slots=True)
class Room:
    """How many candidates there were, and the least memory that a layout needs of a device."""

    considered: int
    fitting: int
    least_bytes: float


def fitting_layouts(
    phase: PhaseModel, layouts: Layouts, tokens: float, *, drafts: bool
) -> tuple[Layouts, Floats, float]:
    """Layouts that hold the weights and one sequence; the sequences each holds; the least need."""
    weights = weight_bytes(phase.model, layouts, phase.precision, drafts=drafts)
    each = state_bytes(phase.model, layouts, phase.precision, tokens, drafts=drafts)
    usable = phase.hardware.memory_bytes * (1.0 - RESERVED_SHARE)
    most = largest_batch(usable - weights, each, layouts)
    fits = most >= layouts.dp
    return layouts.take(fits), most[fits], float(np.min(weights + each))


def decode_points(
    phase: PhaseModel,
    workload: Workload,
    devices: int,
    drafting: Drafting,
    layouts: Layouts | None = None,
) -> tuple[DecodePoints, Room]:
    """Evaluate every decode candidate."""
    if layouts is None:
        layouts = decode_layouts(phase.model, devices, phase.hardware.domain)
    drafts = max(drafting.lengths) > 0
    every = len(layouts) * len(_BATCHES) * len(drafting.lengths)
    layouts, most, least = fitting_layouts(phase, layouts, workload.held, drafts=drafts)
    if not len(layouts):
        return _no_decode(layouts), Room(every, 0, least)
    grid = layouts.column()
    slots = _BATCHES[None, :] * grid.dp * grid.pp
    fits = slots <= most[:, None]
    # Batches that never fit cost nothing.
    used = np.any(fits, axis=0)
    slots, fits = slots[:, used], fits[:, used]
    rows, columns = np.nonzero(fits)
    carried = sequence_bytes(phase.model, phase.precision, workload.mean_isl).total
    link = prompts_per_s(
        carried, phase.hardware, phase.efficiency.link, sharding_devices(phase.model, layouts)
    )
    found = []
    for length in drafting.lengths:
        count = np.array(float(length))
        step = phase.step(grid, slots, np.array(workload.context), count)
        step_s = step.step_s[rows, columns]
        accepted = float(acceptance_lengths(drafting.rate, count))
        own = slots[rows, columns] * accepted / (step_s * workload.decoded)
        found.append((step_s, step_s / accepted, own, np.full(len(rows), float(length))))
    step_s, itl_s, own, drafted = (np.concatenate(column) for column in zip(*found, strict=True))
    turns = len(drafting.lengths)
    limit = np.tile(link[rows], turns)
    points = DecodePoints(
        layouts=layouts.take(np.tile(rows, turns)),
        slots=np.tile(slots[rows, columns], turns),
        drafts=drafted,
        step_s=step_s,
        itl_s=itl_s,
        rate=np.minimum(own, limit),
        link_bound=limit < own,
    )
    return points, Room(every, len(points), least)


def prefill_points(
    phase: PhaseModel, workload: Workload, devices: int, *, drafts: bool = False
) -> tuple[PrefillPoints, Room]:
    """Evaluate every prefill candidate; with `drafts` the draft block reads prompts too."""
    layouts = prefill_layouts(phase.model, devices, phase.hardware.domain)
    longest = max(workload.isl_percentile, float(np.max(workload.isl)))
    chunks = sorted({min(chunk, longest) for chunk in _CHUNKS})
    every = len(layouts) * len(_PREFILL_BATCHES) * len(chunks)
    layouts, most, least = fitting_layouts(phase, layouts, longest, drafts=drafts)
    if not len(layouts):
        return _no_prefill(layouts), Room(every, 0, least)
    grid = layouts.column()
    slots = _PREFILL_BATCHES[None, :] * grid.dp.astype(np.float64)
    rows, columns = np.nonzero(slots <= most[:, None])
    carried = sequence_bytes(phase.model, phase.precision, workload.mean_isl).total
    link = prompts_per_s(
        carried, phase.hardware, phase.efficiency.link, sharding_devices(phase.model, layouts)
    )
    found = []
    for chunk in chunks:
        busy, squares, read_s = _reading(
            phase, workload, grid, slots, np.array(chunk), drafts=drafts
        )
        own = slots / busy
        found.append(
            (
                read_s[rows, columns],
                busy[rows, columns],
                np.maximum(squares / busy**2 - 1.0, 0.0)[rows, columns],
                own[rows, columns],
                np.full(len(rows), chunk),
            )
        )
    read_s, busy_s, scv, own, chunk_tokens = (
        np.concatenate(column) for column in zip(*found, strict=True)
    )
    turns = len(chunks)
    limit = np.tile(link[rows], turns)
    points = PrefillPoints(
        layouts=layouts.take(np.tile(rows, turns)),
        slots=np.tile(slots[rows, columns], turns),
        chunk=chunk_tokens,
        read_s=read_s,
        busy_s=busy_s,
        scv=scv,
        rate=np.minimum(own, limit),
        link_bound=limit < own,
    )
    return points, Room(every, len(points), least)


def _reading(
    phase: PhaseModel,
    workload: Workload,
    grid: Layouts,
    slots: Floats,
    chunk: Floats,
    *,
    drafts: bool,
) -> tuple[Floats, Floats, Floats]:
    """Mean and mean square of an instance's busy time, and the time to read a percentile prompt."""
    busy: Floats = np.zeros(slots.shape)
    squares: Floats = np.zeros(slots.shape)
    hit = workload.prefix_hit
    for isl, weight in zip(workload.isl, workload.weights, strict=True):
        read = phase.read(grid, slots, float(isl), float(isl) * hit, chunk, drafts=drafts)
        each_s = read.busy_s
        busy = busy + weight * each_s
        squares = squares + weight * each_s**2
    longest = workload.isl_percentile
    read = phase.read(grid, slots, longest, longest * hit, chunk, drafts=drafts)
    return busy, squares, read.read_s


def _no_decode(layouts: Layouts) -> DecodePoints:
    none: Floats = np.zeros(0)
    return DecodePoints(layouts, none, none, none, none, none, none > 0)


def _no_prefill(layouts: Layouts) -> PrefillPoints:
    none: Floats = np.zeros(0)
    return PrefillPoints(layouts, none, none, none, none, none, none, none > 0)
