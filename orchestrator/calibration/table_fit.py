"""Efficiencies of a device from tables of single operations, with their error.

    seconds = max(ideal computing / its share, ideal memory / its share) + constant

for each kind of operation, and for all-reduces latency and a share of the link. Residuals count
relative to the measurement, and every table counts alike however many rows it has. What no table
tells (recurrences, a step's own cost) stays as it was assumed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from orchestrator.calibration.least_squares import not_negative
from orchestrator.calibration.operations import Reductions, Rows, reductions_of, rows_of
from orchestrator.calibration.tables import Table
from orchestrator.planner.profile import Profile
from workers.perf.arrays import Floats
from workers.perf.collectives import Links
from workers.perf.efficiency import ASSUMED, Efficiency, Kind
from workers.perf.errors import PerfError
from workers.perf.hardware import HardwareSpec

_ROUNDS = 12
_FOLDS = 5
_MOST_ROWS = 4000  # of one table
_ASSUMED_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class TableFit:
    """A profile, and by table the mean relative error on rows that were left out of the fit."""

    profile: Profile
    errors: dict[str, float]


def fit_tables(tables: Sequence[Table], hardware: HardwareSpec) -> TableFit:
    """Fit what the tables tell about a device. Raises PerfError."""
    for table in tables:
        if hardware.name.upper() not in table.device.upper().replace("-", " ").split():
            raise PerfError(
                f"{table.path}: it is of {table.device}, and --hardware says {hardware.name}"
            )
    every = [found for table in tables if (found := rows_of(table, hardware)) is not None]
    reduced = [one for table in tables if (one := reductions_of(table)) is not None]
    if not every and not reduced:
        raise PerfError("the tables have no rows that the performance model knows")
    errors: dict[str, float] = {}
    efficiency = ASSUMED
    if every:
        errors.update(_left_out(every))
        efficiency = _with(efficiency, _solve(every, None))
    if reduced:
        # Engines have kernels of their own for small messages; NCCL tells where they are missing.
        best = min(reduced, key=lambda one: one.table)
        errors[best.table] = _left_out_reductions(best, hardware)
        share, latency_s = _solve_link(best, hardware, None)
        efficiency = replace(efficiency, link=share)
        hardware = replace(hardware, scale_up_latency_s=latency_s)
    first = tables[0]
    notes = {
        "tables": ", ".join(f"{table.operation} ({table.framework})" for table in tables),
        "device": first.device,
        "error": "of single operations, not of steps; mean of tables",
        **{f"error of {name}": f"{error:.3f}" for name, error in errors.items()},
    }
    efficiency = replace(
        efficiency,
        name=f"AIConfigurator's tables of {first.device}",
        error=float(np.mean(list(errors.values()))),
        notes=notes,
    )
    return TableFit(Profile(hardware, efficiency), errors)


@dataclass(frozen=True, slots=True)
class _Shares:
    """Of a kind: shares of the peaks, and what an operation takes however small it is."""

    compute: float
    memory: float
    constant_s: float

    def predict(self, rows: Rows) -> Floats:
        busy_s = np.maximum(rows.compute_s / self.compute, rows.memory_s / self.memory)
        return busy_s + self.constant_s


def _with(efficiency: Efficiency, found: Mapping[Kind, _Shares]) -> Efficiency:
    compute, memory = dict(efficiency.compute), dict(efficiency.memory)
    least_s: dict[Kind, float] = {}
    for kind, shares in found.items():
        # The head is a product like others.
        for one in (kind, "head") if kind == "projections" else (kind,):
            compute[one], memory[one] = shares.compute, shares.memory
            least_s[one] = shares.constant_s
    return replace(efficiency, compute=compute, memory=memory, operations_s=least_s)


def _solve(every: Sequence[Rows], fold: int | None) -> dict[Kind, _Shares]:
    """Fit all rows, or those that are not in a fold, each kind by itself."""
    rows = [_part(one, fold, inside=False) for one in every]
    kinds = dict.fromkeys(one.kind for one in rows)
    return {kind: _solve_kind([one for one in rows if one.kind == kind]) for kind in kinds}


def _solve_kind(rows: Sequence[Rows]) -> _Shares:
    weights = np.concatenate([np.full(len(one.seconds), len(one.seconds) ** -0.5) for one in rows])
    seconds, compute_s, memory_s = (
        np.concatenate([getattr(one, name) for one in rows])
        for name in ("seconds", "compute_s", "memory_s")
    )
    scale = weights / seconds
    found = _Shares(_ASSUMED_SHARE, _ASSUMED_SHARE, 0.0)
    for _ in range(_ROUNDS):
        computes = compute_s / found.compute >= memory_s / found.memory
        ideal = np.stack(
            [np.where(computes, compute_s, 0.0), np.where(computes, 0.0, memory_s)], axis=1
        )
        terms = np.concatenate([ideal, np.ones((len(seconds), 1))], axis=1)
        rest = np.maximum(seconds - ideal.sum(axis=1), 0.0)
        more = not_negative(terms * scale[:, None], rest * scale)
        compute, memory, constant_s = map(float, more)
        found = _Shares(1.0 / (1.0 + compute), 1.0 / (1.0 + memory), constant_s)
    return found


def _left_out(every: Sequence[Rows]) -> dict[str, float]:
    errors: dict[str, list[Floats]] = {one.table: [] for one in every}
    for fold in range(_FOLDS):
        found = _solve(every, fold)
        for one in every:
            test = _part(one, fold, inside=True)
            errors[one.table].append(np.abs(found[one.kind].predict(test) / test.seconds - 1.0))
    return {name: float(np.mean(np.concatenate(parts))) for name, parts in errors.items()}


def _part(rows: Rows, fold: int | None, *, inside: bool) -> Rows:
    """A thinned table, of it the rows of a fold or the others."""
    count = len(rows.seconds)
    chosen = np.arange(0, count, max(1, -(-count // _MOST_ROWS)))
    if fold is not None:
        chosen = chosen[(np.arange(len(chosen)) % _FOLDS == fold) == inside]
    return replace(
        rows,
        seconds=rows.seconds[chosen],
        compute_s=rows.compute_s[chosen],
        memory_s=rows.memory_s[chosen],
    )


def _solve_link(rows: Reductions, hardware: HardwareSpec, kept: int | None) -> tuple[float, float]:
    """(share of the link's bandwidth, seconds of latency) of the model's all-reduce."""
    chosen = np.ones(len(rows.seconds), np.bool_)
    if kept is not None:
        chosen = np.arange(len(chosen)) % _FOLDS != kept
    size, ranks, seconds = rows.size_bytes[chosen], rows.ranks[chosen], rows.seconds[chosen]
    others = ranks - 1.0
    peak = hardware.scale_up_bytes_per_s
    share, latency_s = _ASSUMED_SHARE, hardware.scale_up_latency_s
    for _ in range(_ROUNDS):
        once = latency_s + size * others / (peak * share)
        twice = 2.0 * latency_s + 2.0 * size * others / (ranks * peak * share)
        is_once = once <= twice
        moved = np.where(is_once, size * others / peak, 2.0 * size * others / (ranks * peak))
        terms = np.stack([moved, np.where(is_once, 1.0, 2.0)], axis=1)
        rest = np.maximum(seconds - moved, 0.0)
        more = not_negative(terms / seconds[:, None], rest / seconds)
        share, latency_s = 1.0 / (1.0 + float(more[0])), float(more[1])
    return share, latency_s


def _left_out_reductions(rows: Reductions, hardware: HardwareSpec) -> float:
    errors = []
    for fold in range(_FOLDS):
        share, latency_s = _solve_link(rows, hardware, fold)
        links = Links(replace(hardware, scale_up_latency_s=latency_s), share)
        test = np.arange(len(rows.seconds)) % _FOLDS == fold
        predicted = links.all_reduce_s(rows.size_bytes[test], rows.ranks[test].astype(np.int64))
        errors.append(np.abs(predicted / rows.seconds[test] - 1.0))
    return float(np.mean(np.concatenate(errors)))
