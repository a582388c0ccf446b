"""How long the work of a simulated engine takes.

Apart from the engine, so that whoever knows better (a performance model fitted to a real engine)
can say so without touching it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class StepTimes(Protocol):
    """Durations in seconds, of whole steps and of whole transfers."""

    def step_s(
        self,
        prompt_tokens: int,
        decode_rows: int,
        context_tokens: int,
        prompt_context: float = 0.0,
    ) -> float:
        """One engine step that reads `prompt_tokens` tokens of prompts, each with `prompt_context`
        tokens before it on average, and makes one token for each of `decode_rows` requests, which
        have `context_tokens` tokens of context together."""

    def transfer_s(self, tokens: int) -> float:
        """The hand-off of the state of so many tokens."""

    def state_bytes(self, tokens: int) -> int:
        """What such a hand-off moves."""


@dataclass(frozen=True, slots=True)
class LinearTimes:
    """Straight lines through the origin of each kind of work, and a fixed cost where there is any.

    The defaults are those of the shipped model on one CPU core, rounded.
    """

    step_ms: float = 2.0  # of every step
    prompt_token_us: float = 100.0  # for each prompt token in a step
    row_us: float = 100.0  # for each request that decodes in a step
    context_token_us: float = 0.0  # for each token of context of those requests
    transfer_ms: float = 1.0  # of every hand-off
    kv_token_bytes: int = 2048  # moved in a hand-off for each token
    mamba_bytes: int = 65536  # and for each request
    bytes_per_s: float = 2e9

    def step_s(
        self,
        prompt_tokens: int,
        decode_rows: int,
        context_tokens: int,
        prompt_context: float = 0.0,
    ) -> float:
        micros = (
            prompt_tokens * self.prompt_token_us
            + decode_rows * self.row_us
            + context_tokens * self.context_token_us
        )
        return self.step_ms / 1e3 + micros / 1e6

    def transfer_s(self, tokens: int) -> float:
        return self.transfer_ms / 1e3 + self.state_bytes(tokens) / self.bytes_per_s

    def state_bytes(self, tokens: int) -> int:
        return tokens * self.kv_token_bytes + self.mamba_bytes


@dataclass(frozen=True, slots=True)
class NamedTimes:
    """Times of a model that the planner knows, on a device that it knows; see `modelled.py`."""

    model: str
    hardware: str
    precision: str = "fp8"
