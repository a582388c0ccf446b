"""What a plan is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.planner.phases import Drafting
from orchestrator.planner.solve import Targets
from orchestrator.planner.workload import Workload
from workers.perf.efficiency import ASSUMED, Efficiency
from workers.perf.engine_times import PhaseModel
from workers.perf.errors import PerfError
from workers.perf.hardware import HardwareSpec
from workers.perf.model_spec import ModelSpec
from workers.perf.precision import Precision, precision_named
from workers.perf.speculation import acceptance_rate

MOST_DRAFT_TOKENS = 7


@dataclass(frozen=True, slots=True)
class Question:
    """One question to the planner; `requests_per_s` None asks for as much as possible."""

    model: ModelSpec
    hardware: HardwareSpec
    devices: int
    workload: Workload
    targets: Targets
    precision: Precision
    drafting: Drafting
    requests_per_s: float | None = None
    efficiency: Efficiency = ASSUMED

    @property
    def drafts(self) -> bool:
        """Whether speculation is among the candidates, so that prefill makes draft state."""
        return max(self.drafting.lengths) > 0

    @property
    def phase(self) -> PhaseModel:
        """The performance model that answers it."""
        return PhaseModel(self.model, self.hardware, self.precision, self.efficiency)


def drafting_for(model: ModelSpec, acceptance: float | None, draft_tokens: int) -> Drafting:
    """Draft lengths to try.

    Args:
        model: must have an MTP block for anything but no drafts.
        acceptance: acceptance length that was seen with `draft_tokens` drafts, the free token
            included; None leaves speculation out. Other draft lengths follow from it.

    Raises:
        PerfError: the model cannot draft, or the acceptance length is impossible.
    """
    if acceptance is None:
        return Drafting()
    if model.draft is None:
        raise PerfError(
            f"acceptance {acceptance:g}: {model.name} has no MTP block to draft with; leave "
            "--acceptance out"
        )
    if not 1 <= draft_tokens <= MOST_DRAFT_TOKENS:
        raise PerfError(f"draft_tokens {draft_tokens}: must be from 1 to {MOST_DRAFT_TOKENS}")
    rate = acceptance_rate(acceptance, draft_tokens)
    return Drafting(tuple(range(draft_tokens + 1)), rate)


def usual_precision(model: ModelSpec, hardware: HardwareSpec) -> Precision:
    """The precision that a model is served in on a device when none is asked for."""
    if model.published_weights == "mxfp4":
        return precision_named("mxfp4")
    if "fp4" in hardware.flops_per_s:
        hybrid_or_sparse = model.stack.recurrence or model.stack.experts
        return precision_named("nvfp4" if hybrid_or_sparse else "nvfp4-all")
    if "fp8" in hardware.flops_per_s:
        return precision_named("fp8")
    return precision_named("bf16" if "bf16" in hardware.flops_per_s else "fp32")
