"""Workers of several ranks, driven step by step in the test's own thread as rank 0."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.reference_models import Shape, reference_greedy, write_drafting
from workers.config import WorkerConfig
from workers.engine.native.engine import NativeEngine
from workers.engine.native.loading import load_native_engine
from workers.parallel.layout import ParallelLayout
from workers.registry import Role
from workers.telemetry import TraceConfig, start_tracing

MAX_TOKENS = 12
VOCAB = 19  # few words, so that random drafts are right now and then, and 2 and 4 do not divide it


@dataclass(frozen=True, slots=True)
class Reference:
    """A checkpoint with an MTP block, prompts, and transformers' answers."""

    folder: Path
    prompts: list[list[int]]
    expected: list[list[int]]


def write_checkpoint(
    folder: Path,
    shape: Shape,
    lengths: tuple[int, ...],
    seed: int,
    max_tokens: int = MAX_TOKENS,
) -> Reference:
    """A random model and prompts of the given lengths, some of which share a prefix."""
    model = write_drafting(folder, shape, seed)
    rng = random.Random(seed)
    base = [rng.randrange(shape.vocab_size) for _ in range(max(lengths))]
    prompts = [base[:length] for length in lengths]
    expected = [reference_greedy(model, prompt, max_tokens) for prompt in prompts]
    return Reference(folder, prompts, expected)


def worker_config(
    folder: Path,
    layout: ParallelLayout,
    draft_tokens: int | Literal["auto"],
    *,
    role: Role = "decode",
    kv_tokens: int = 4096,
    max_checkpoints: int = 8,
    step_tokens: int = 64,
    hop_b: bool = True,
    timeout_s: float = 30.0,
) -> WorkerConfig:
    return WorkerConfig(
        worker_id=f"{role}-group",
        role=role,
        model_path=str(folder),
        model_name="reference",
        kv_tokens=kv_tokens,
        max_requests=8,
        max_checkpoints=max_checkpoints,
        step_tokens=step_tokens,
        checkpoint_tokens=64,
        tp=layout.tpa if role == "prefill" else 1,
        kvp=layout.kvp,
        tpa=layout.tpa,
        tpf=layout.tpf,
        ep=layout.ep,
        interleave=layout.interleave,
        hop_b=hop_b,
        collective_timeout_s=timeout_s,
        draft_tokens=draft_tokens,
    )


@contextmanager
def running(config: WorkerConfig) -> Iterator[NativeEngine]:
    """An engine of that config, with all its ranks."""
    engine = load_native_engine(config, start_tracing("test", TraceConfig())).engine
    try:
        yield engine
    finally:
        engine.close()
