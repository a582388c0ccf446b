"""The times of the simulated engine as the simulator asks for them.

With them a simulation is of a cluster of `engine: simulated` workers, which can be run beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from workers.engine.simulated.times import LinearTimes
from workers.perf.step_times import Piece


@dataclass(frozen=True, slots=True)
class LinearStepTimes:
    """Straight lines through what is read and what is decoded."""

    linear: LinearTimes
    acceptance_length: float = 1.0

    def step_s(
        self,
        sequences: int,
        context_tokens: float,
        prompt_tokens: float = 0.0,
        prompt_context: float = 0.0,
    ) -> float:
        """As `runs.Times`; these do not depend on what a prompt attends to."""
        linear = self.linear
        micros = (
            prompt_tokens * linear.prompt_token_us
            + sequences * linear.row_us
            + context_tokens * linear.context_token_us
        )
        return linear.step_ms / 1e3 + micros / 1e6

    def decode_pieces(self, sequences: int) -> tuple[Piece, ...]:
        """As `runs.Times`: one piece."""
        return (Piece(math.inf, self.step_s(sequences, 0.0), self.linear.context_token_us / 1e6),)

    def handoff_bytes(self, prompt_tokens: float) -> float:
        """As `runs.Times`."""
        return float(self.linear.state_bytes(int(prompt_tokens)))
