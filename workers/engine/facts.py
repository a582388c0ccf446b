"""What the directory says of a worker's engine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """`max_model_tokens`: prompt and answer together; `epoch`: version of the weights;
    `block_tokens`: of the prefix cache, None where they are those of the config."""

    model_fingerprint: str
    max_model_tokens: int
    vocab_size: int
    epoch: int
    block_tokens: int | None = None
