"""What the bench of Tandem over vLLM runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class VllmBenchSettings:
    """`python` has vLLM; `tokenizer_from` is a checkpoint whose vocabulary the model gets."""

    python: Path
    tokenizer_from: Path
    rounds: int = 15
    requests: int = 48
    concurrency: int = 16
    prompt_tokens: int = 64
    output_tokens: int = 64
    threads: int = 1
    kv_tokens: int = 32_768
    kv_cache_bytes: int = 512 * 2**20
    longest_tokens: int = 4096  # of the model
    args: tuple[str, ...] = ("--enforce-eager",)
