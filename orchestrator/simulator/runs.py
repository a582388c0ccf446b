"""Decode steps of one batch in closed form: when the i-th of them ends, and which one runs when.

While no request joins or leaves a batch, every step adds the same number of tokens to its contexts,
and the roofline time of a step is piecewise linear in them. So the steps of one piece are an
arithmetic series, and thousands of tokens cost what one costs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Protocol

from workers.perf.step_times import Piece

# A run is cut where the middle of it is off the straight line by more than this share.
_STRAIGHT = 1e-9


class Times(Protocol):
    """How long the steps of one worker take and how much state it hands over.

    `workers.perf.step_times.StepTimes` is one; `LinearStepTimes` the other.
    """

    @property
    def acceptance_length(self) -> float:
        """Tokens that a decode step gives each request on average."""

    def step_s(
        self,
        sequences: int,
        context_tokens: float,
        prompt_tokens: float = 0.0,
        prompt_context: float = 0.0,
    ) -> float:
        """Seconds of a step that decodes `sequences` requests with `context_tokens` cached tokens
        together, and reads prompts that attend to `prompt_context` tokens on average."""

    def decode_pieces(self, sequences: int) -> tuple[Piece, ...]:
        """`step_s` of steps that only decode as straight pieces over `context_tokens`, in order;
        empty where they are not known as such."""

    def handoff_bytes(self, prompt_tokens: float) -> float:
        """Bytes of a prompt's state."""


@dataclass(slots=True, init=False)
class Run:
    """`steps` steps, the first of `first_s` seconds, each `slope_s` longer than the one before."""

    steps: Final[int]
    first_s: Final[float]
    slope_s: Final[float]

    def __init__(
        self,
        steps: int,
        first_s: float,
        slope_s: float,
    ) -> None:
        self.steps = steps
        self.first_s = first_s
        self.slope_s = slope_s

    def end_s(self, steps: int) -> float:
        """Seconds from the beginning to the end of the first `steps` steps."""
        return steps * self.first_s + self.slope_s * (steps * (steps - 1) * 0.5)

    def finished(self, elapsed_s: float) -> int:
        """Steps that have ended after so many seconds."""
        half, linear = 0.5 * self.slope_s, self.first_s - 0.5 * self.slope_s
        if half == 0.0:
            guess = elapsed_s / linear if linear > 0.0 else float(self.steps)
        else:
            inside = max(linear * linear + 4.0 * half * elapsed_s, 0.0)
            # The stable form of the positive root of half x^2 + linear x - elapsed = 0.
            guess = 2.0 * elapsed_s / (linear + math.sqrt(inside))
        count = min(max(int(guess), 0), self.steps)
        while count < self.steps and self.end_s(count + 1) <= elapsed_s:
            count += 1
        while count and self.end_s(count) > elapsed_s:
            count -= 1
        return count

    def running(self, elapsed_s: float) -> int:
        """The number of the step that runs after so many seconds, from 1."""
        return min(self.finished(elapsed_s) + 1, self.steps)


def decode_run(
    times: Times, sequences: int, context_tokens: float, growth_tokens: float, steps: int
) -> Run:
    """The longest straight piece of the next `steps` decode steps, at least one.

    Args:
        times: of the worker.
        sequences: in the batch, with `context_tokens` tokens together in the first step.
        growth_tokens: that each step adds to the contexts, all together.
        steps: until the batch changes.
    """
    for most_context, base_s, slope_s in times.decode_pieces(sequences):
        if context_tokens < most_context:
            inside = (most_context - context_tokens) / growth_tokens
            if inside < steps - 1:
                steps = int(inside) + 1
            return Run(steps, base_s + slope_s * context_tokens, slope_s * growth_tokens)
    return _probed(times, sequences, context_tokens, growth_tokens, steps)


def _probed(
    times: Times, sequences: int, context_tokens: float, growth_tokens: float, steps: int
) -> Run:
    """As `decode_run`, where only single steps can be asked for."""
    first_s = times.step_s(sequences, context_tokens)
    while steps > 1:
        last_s = times.step_s(sequences, context_tokens + growth_tokens * (steps - 1))
        slope_s = (last_s - first_s) / (steps - 1)
        if steps == 2:
            return Run(2, first_s, slope_s)
        middle = (steps - 1) // 2
        middle_s = times.step_s(sequences, context_tokens + growth_tokens * middle)
        if abs(first_s + slope_s * middle - middle_s) <= _STRAIGHT * middle_s:
            return Run(steps, first_s, slope_s)
        steps //= 2
    return Run(1, first_s, 0.0)
