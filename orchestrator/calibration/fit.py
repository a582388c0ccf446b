"""From measured steps to efficiencies: least squares over the performance model's own terms.

A step's predicted time is a sum: ideal seconds of each kind of operation, computing or reading
memory, each divided by an efficiency, and constants for a step, a sequence, a prompt and a draft.
So inverse efficiencies are coefficients of a linear fit; they are at least 1, because no software
beats peaks. Residuals count relative to the measurement: short steps matter as much as long ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from orchestrator.calibration.least_squares import not_negative
from workers.perf.arrays import Floats
from workers.perf.efficiency import IDEAL, KINDS, Efficiency, Kind
from workers.perf.engine_times import PhaseModel
from workers.perf.errors import PerfError
from workers.perf.forward import decoding, reading
from workers.perf.hardware import HardwareSpec
from workers.perf.layouts import Layout, Layouts
from workers.perf.meter import COMPUTE, MEMORY
from workers.perf.model_spec import ModelSpec
from workers.perf.precision import Precision

_CONSTANTS = ("step", "sequence", "prompt", "draft")
_ROUNDS = 3
_LEAST_MEASUREMENTS = 6
_SLOWEST = 1e4


@dataclass(frozen=True, slots=True)
class Measurement:
    """One kind of step and how long it took.

    `sequences` decode with `context_tokens` cached tokens each and `draft_tokens` drafts; or
    `prompt_tokens` tokens are read of one prompt, after `read_tokens` others.
    """

    seconds: float
    sequences: int = 0
    context_tokens: float = 0.0
    draft_tokens: int = 0
    prompt_tokens: int = 0
    read_tokens: int = 0

    def values(self) -> dict[str, float]:
        """As a profile keeps it."""
        return {name: float(getattr(self, name)) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Fit:
    """Efficiencies; `errors` are relative, of each measurement when it was left out of the fit."""

    efficiency: Efficiency
    errors: Floats


def fit(
    model: ModelSpec,
    hardware: HardwareSpec,
    precision: Precision,
    measurements: Sequence[Measurement],
    name: str,
) -> Fit:
    """Fit efficiencies and estimate their error by leaving each measurement out in turn.

    Raises:
        PerfError: too few measurements.
    """
    if len(measurements) < _LEAST_MEASUREMENTS:
        raise PerfError(
            f"measurements: {len(measurements)} are too few to fit, at least "
            f"{_LEAST_MEASUREMENTS} are needed"
        )
    seconds = np.array([one.seconds for one in measurements])
    efficiency = IDEAL
    terms: Floats = np.zeros((0, 0))
    for _ in range(_ROUNDS):
        # Which of computing and memory bounds an operation depends on the efficiencies themselves.
        phase = PhaseModel(model, hardware, precision, efficiency)
        terms = np.array([_terms(phase, one) for one in measurements])
        efficiency = _efficiency(_solve(terms, seconds), name)
    errors = np.array(
        [_left_out_error(terms, seconds, index) for index in range(len(measurements))]
    )
    error = float(np.mean(np.abs(errors)))
    notes = {
        "measurements": str(len(measurements)),
        "largest_error": f"{np.max(np.abs(errors)):.3f}",
        "model": model.name,
    }
    return Fit(replace(efficiency, error=error, notes=notes), errors)


def _names() -> list[tuple[Kind, str]]:
    return [(kind, bound) for kind in KINDS for bound in (COMPUTE, MEMORY)]


def _terms(phase: PhaseModel, one: Measurement) -> list[float]:
    """Ideal seconds of a step by kind and bound, and its counts of constants."""
    layouts = Layouts.of([Layout()])
    forward = phase.backbone
    if one.sequences:
        batch = decoding(
            np.array([float(one.sequences)]),
            np.array(one.draft_tokens + 1.0),
            np.array(one.context_tokens),
        )
    else:
        batch = reading(
            np.ones(1),
            np.array([float(one.prompt_tokens)]),
            np.array(one.read_tokens + one.prompt_tokens / 2.0),
        )
    parts = dict(forward.pass_times(layouts, batch, detailed=True).parts)
    if one.draft_tokens and phase.drafter is not None:
        again = decoding(
            np.array([float(one.sequences)]), np.ones(()), np.array(one.context_tokens)
        )
        drafted = phase.drafter.pass_times(layouts, again, detailed=True).parts
        for key, time_s in drafted.items():
            parts[key] = parts[key] + one.draft_tokens * time_s
    ideal = []
    for kind, bound in _names():
        shares = phase.efficiency.compute if bound == COMPUTE else phase.efficiency.memory
        spent = float(np.sum(parts[kind, bound])) if (kind, bound) in parts else 0.0
        ideal.append(spent * shares[kind])
    return [
        *ideal,
        1.0,
        float(one.sequences),
        1.0 if one.prompt_tokens else 0.0,
        float(one.draft_tokens),
    ]


def _solve(terms: Floats, seconds: Floats) -> Floats:
    """Coefficients: at least 1 for operations, at least 0 for constants."""
    least = np.array([1.0] * len(_names()) + [0.0] * len(_CONSTANTS))
    rest = np.maximum(seconds - terms @ least, 0.0)
    more = not_negative(terms / seconds[:, None], rest / seconds)
    return np.minimum(least + more, _SLOWEST)


def _left_out_error(terms: Floats, seconds: Floats, index: int) -> float:
    kept = np.arange(len(seconds)) != index
    predicted = float(terms[index] @ _solve(terms[kept], seconds[kept]))
    return predicted / float(seconds[index]) - 1.0


def _efficiency(coefficients: Floats, name: str) -> Efficiency:
    shares = {key: 1.0 / float(value) for key, value in zip(_names(), coefficients, strict=False)}
    step_s, sequence_s, prompt_s, draft_s = map(float, coefficients[len(_names()) :])
    return Efficiency(
        name=name,
        compute={kind: shares[kind, COMPUTE] for kind in KINDS},
        memory={kind: shares[kind, MEMORY] for kind in KINDS},
        link=1.0,
        step_s=step_s,
        sequence_s=sequence_s,
        prompt_s=prompt_s,
        draft_s=draft_s,
    )
