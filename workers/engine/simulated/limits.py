"""What a simulated worker can take, and why it does not take a request: as the native engine."""

from __future__ import annotations

from dataclasses import dataclass

from protos.tandem.v1.common_pb2 import REASON_INVALID_ARGUMENT, REASON_OUT_OF_CAPACITY
from workers.engine.acceptance import Problem, malformed, over
from workers.engine.commands import WorkItem


@dataclass(frozen=True, slots=True)
class Limits:
    """What one simulated worker can take."""

    max_requests: int
    kv_tokens: int
    step_tokens: int
    vocab_size: int
    lease_s: float  # a reservation whose state does not come in time is given up


def problem_with(
    item: WorkItem,
    prompt: tuple[int, ...],
    generated: tuple[int, ...],
    running: int,
    limits: Limits,
) -> Problem | None:
    """Why a request is not taken beside `running` others; None when it is."""
    sampling = item.sampling
    needed = len(prompt) + sampling.max_tokens
    if (problem := malformed(item, prompt, generated)) is not None:
        return problem
    if sampling.grammar is not None:
        return REASON_INVALID_ARGUMENT, "the simulated engine follows no grammar"
    if running >= limits.max_requests:
        most = limits.max_requests
        return REASON_OUT_OF_CAPACITY, f"all {most} requests that it holds are running"
    if needed > limits.kv_tokens:
        return REASON_OUT_OF_CAPACITY, f"{needed} tokens needed, of {limits.kv_tokens} in all"
    return over(item, generated)
