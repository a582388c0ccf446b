"""Models and devices that these tests share."""

from __future__ import annotations

from workers.perf.efficiency import ASSUMED, IDEAL, Efficiency
from workers.perf.engine_times import PhaseModel
from workers.perf.hardware import known_hardware
from workers.perf.known_models import known_model
from workers.perf.precision import precision_named


def phase(
    model: str = "nemotron-3-super",
    hardware: str = "gb200",
    precision: str = "nvfp4",
    efficiency: Efficiency = ASSUMED,
) -> PhaseModel:
    """The performance model of one combination."""
    return PhaseModel(
        known_model(model), known_hardware(hardware), precision_named(precision), efficiency
    )


def ideal(model: str = "llama-3.1-70b") -> PhaseModel:
    """Peaks alone, in FP4."""
    return phase(model, precision="fp4", efficiency=IDEAL)
