"""Step times of a real model on real hardware, for simulated workers that stand in for both.

The performance model is the planner's (docs/planner.md). Apart from `times.py`, because it needs
numpy and a table that takes a moment to make, and most simulated workers need neither.
"""

from __future__ import annotations

from workers.engine.simulated.times import NamedTimes
from workers.parallel.layout import ParallelLayout
from workers.perf.efficiency import ASSUMED
from workers.perf.engine_times import PhaseModel
from workers.perf.hardware import known_hardware
from workers.perf.known_models import known_model
from workers.perf.layouts import Layout
from workers.perf.precision import precision_named
from workers.perf.step_times import StepTimes


class ModelledTimes:
    """What one worker of a layout would take; the simulated engine's StepTimes."""

    def __init__(self, named: NamedTimes, layout: ParallelLayout, chunk_tokens: int) -> None:
        """`chunk_tokens`: most tokens of a prompt in one step. Raises PerfError for a name that is
        not known."""
        phase = PhaseModel(
            known_model(named.model),
            known_hardware(named.hardware),
            precision_named(named.precision),
            ASSUMED,
        )
        ranks = Layout(
            kvp=layout.kvp, tpa=layout.tpa, tpf=layout.tpf, ep=layout.ep, hopb=layout.kvp > 1
        )
        self._times = StepTimes(phase, ranks, most_prompt_tokens=chunk_tokens)
        self._chunk_tokens = chunk_tokens

    def step_s(
        self,
        prompt_tokens: int,
        decode_rows: int,
        context_tokens: int,
        prompt_context: float = 0.0,
    ) -> float:
        return self._times.step_s(
            decode_rows, float(context_tokens), float(prompt_tokens), prompt_context
        )

    def transfer_s(self, tokens: int) -> float:
        # All chunks but the last were sent while the rest of the prompt was read.
        chunk = min(tokens, self._chunk_tokens)
        read_s = sum(
            self._times.prefill_chunk_s(min(chunk, tokens - read), read)
            for read in range(0, tokens, chunk)
        )
        return self._times.handoff_s(tokens, chunk, read_s)

    def state_bytes(self, tokens: int) -> int:
        return int(self._times.handoff_bytes(tokens))
