"""How good a decode step is by itself: its share of the roofline, and its time outside torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from orchestrator.bench.engine.lineup import Lineup
from orchestrator.bench.measures import decode_speed
from orchestrator.bench.messages import MeasureRoofline, Profile, Profiled, Roofline, Run
from orchestrator.bench.process import Contender

ROOFLINE_BATCHES = (1, 32)
OVERHEAD_BATCH = 8


@dataclass(frozen=True, slots=True)
class RooflineResult:
    """Medians over rounds. The share is of the floor described in `contenders.roofline`;
    `share_of_wide` takes the matmul rate with many rows instead of the batch's."""

    batch: int
    dtype: str | None
    step_ms: float | None
    weight_bytes: int | None
    read_gb_per_s: float | None
    matmul_gflops_per_s: float | None
    wide_matmul_gflops_per_s: float | None
    bound_by: str | None
    share: float | None
    share_of_wide: float | None
    why: str | None


def measure_roofline_share(
    here: Lineup, native: str, batch: int, isl: int, osl: int, rounds: int
) -> RooflineResult:
    """Step time and machine rates, measured in turns in the same process."""

    def turn(contender: Contender, index: int) -> tuple[float, Roofline]:
        machine = contender.roofline(MeasureRoofline(batch=batch))
        prompts = here.prompts.deal(f"roofline {batch} {index}", batch, isl)
        run = contender.run(Run(prompts=prompts, output_tokens=[osl] * batch))
        return decode_speed(run).step_ms / 1000.0, machine

    outcome = here.compete([native], turn, lambda sample: -sample[0], rounds)[native]
    machines = [machine for _, machine in outcome.samples]

    def middle(figure: Callable[[Roofline], float], scale: float) -> float | None:
        return median(map(figure, machines)) * scale if machines else None

    return RooflineResult(
        batch=batch,
        dtype=outcome.variant or None,
        step_ms=outcome.median_of(lambda sample: sample[0] * 1000.0),
        weight_bytes=machines[0].weight_bytes if machines else None,
        read_gb_per_s=middle(lambda machine: machine.read_bytes_per_s, 1e-9),
        matmul_gflops_per_s=middle(lambda machine: machine.matmul_flops_per_s, 1e-9),
        wide_matmul_gflops_per_s=middle(lambda machine: machine.wide_matmul_flops_per_s, 1e-9),
        bound_by=bound_by(machines[0], batch) if machines else None,
        share=outcome.median_of(
            lambda sample: floor_s(sample[1], batch, sample[1].matmul_flops_per_s) / sample[0]
        ),
        share_of_wide=outcome.median_of(
            lambda sample: floor_s(sample[1], batch, sample[1].wide_matmul_flops_per_s) / sample[0]
        ),
        why=outcome.why,
    )


def floor_s(machine: Roofline, batch: int, flops_per_s: float) -> float:
    """The least time of a step: reading all weights, or multiplying with them."""
    reading_s = machine.weight_bytes / machine.read_bytes_per_s
    return max(reading_s, batch * machine.token_flops / flops_per_s)


def bound_by(machine: Roofline, batch: int) -> str:
    """Which of both is slower."""
    reading_s = machine.weight_bytes / machine.read_bytes_per_s
    slower_s = floor_s(machine, batch, machine.matmul_flops_per_s)
    return "memory" if reading_s >= slower_s else "matmul"


@dataclass(frozen=True, slots=True)
class OverheadResult:
    """Medians over rounds. `outside_share` is an upper bound: the profiler's own time counts."""

    batch: int
    dtype: str | None
    step_ms: float | None
    profiled_step_ms: float | None
    torch_ms: float | None
    operations: float | None
    outside_share: float | None
    why: str | None


def measure_overhead(
    here: Lineup, native: str, batch: int, isl: int, steps: int, rounds: int
) -> OverheadResult:
    """Profile `steps` decode steps of a batch."""

    def turn(contender: Contender, index: int) -> Profiled:
        prompts = here.prompts.deal(f"overhead {index}", batch, isl)
        return contender.profile(Profile(prompts=prompts, steps=steps))

    outcome = here.compete([native], turn, lambda sample: -sample.step_s, rounds)[native]
    return OverheadResult(
        batch=batch,
        dtype=outcome.variant or None,
        step_ms=outcome.median_of(lambda sample: sample.step_s * 1000.0),
        profiled_step_ms=outcome.median_of(lambda sample: sample.profiled_step_s * 1000.0),
        torch_ms=outcome.median_of(lambda sample: sample.torch_s * 1000.0),
        operations=outcome.median_of(lambda sample: sample.operations),
        outside_share=outcome.median_of(
            lambda sample: 1.0 - sample.torch_s / sample.profiled_step_s
        ),
        why=outcome.why,
    )
