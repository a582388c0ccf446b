"""What engines ask of a request before they take it in."""

from __future__ import annotations

from collections.abc import Sequence

from protos.tandem.v1.common_pb2 import (
    REASON_INVALID_ARGUMENT,
    REASON_LENGTH,
    REASON_STOP_TOKEN,
    ReasonCode,
)
from workers.engine.commands import WorkItem

Problem = tuple[ReasonCode.ValueType, str]  # a reason and its detail


def malformed(item: WorkItem, prompt: Sequence[int], made: Sequence[int]) -> Problem | None:
    """Why no engine could answer it."""
    if not prompt or item.sampling.max_tokens < max(len(made), 1):
        return REASON_INVALID_ARGUMENT, "a request needs prompt tokens and room to answer"
    return None


def over(item: WorkItem, made: Sequence[int]) -> Problem | None:
    """Why nothing is left to do: whoever made these tokens could not say any more that they were
    all."""
    if made and made[-1] in item.sampling.stop_token_ids:
        return REASON_STOP_TOKEN, ""
    if len(made) >= item.sampling.max_tokens:
        return REASON_LENGTH, ""
    return None
