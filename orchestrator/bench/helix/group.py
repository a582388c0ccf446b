"""One group of ranks under measurement, with this process as its rank 0.

Exists to make decode steps of any context length without reading a prompt of it: memory is there
and zeroed, and what attention costs does not depend on what it holds. Requests, scheduling and
sampling are left out; what is timed is what all ranks do together.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from orchestrator.bench.helix.settings import Settings
from workers.config import WorkerConfig
from workers.engine.native.calls import DraftCall, ReadCall, VerifyCall
from workers.engine.native.loading import start_ranks
from workers.engine.native.part import block_tokens_of_group
from workers.engine.native.passes import ModelPasses
from workers.model.config import ModelConfig
from workers.parallel.layout import ParallelLayout
from workers.parallel.traffic import Sent, Traffic

_WARM_STEPS = 3


@dataclass(frozen=True, slots=True)
class Step:
    """One step of one group: how long it took, and what rank 0 sent and waited for."""

    step_s: float
    sent: Sent


class MeasuredGroup:
    """Makes calls as an engine would."""

    def __init__(self, passes: ModelPasses, traffic: Traffic, block_tokens: int, width: int):
        self._passes = passes
        self._traffic = traffic
        self._block_tokens = block_tokens
        self._width = width

    def steps(self, batch: int, context: int, draft_tokens: int, count: int) -> list[Step]:
        """`count` decode steps of `batch` requests with `context` tokens each, after a few more."""
        contexts = torch.full((batch,), context)
        tables = self._tables(batch, context + draft_tokens + 1)
        made = []
        for number in range(_WARM_STEPS + count):
            self._traffic.take()
            began_s = time.perf_counter()
            if draft_tokens:
                self._passes.draft(
                    DraftCall(
                        next_token_ids=torch.full((batch, 1), number),
                        hidden=torch.ones(batch, 1, self._width),
                        block_tables=tables,
                        context_lens=contexts - 1,
                        counts=torch.ones_like(contexts),
                        draft_tokens=draft_tokens,
                    )
                )
            self._passes.verify(
                VerifyCall(
                    token_ids=torch.full((batch, draft_tokens + 1), number),
                    slots=torch.arange(batch),
                    block_tables=tables,
                    context_lens=contexts,
                    pending=torch.zeros_like(contexts),
                )
            )
            made.append(Step(time.perf_counter() - began_s, self._traffic.take()))
        return made[_WARM_STEPS:]

    def stored_tokens(self, tokens: int) -> int:
        """How many places of rank 0's KV hold something after a prompt of `tokens` was read.

        Rank 0 is the first to get a token, so no KVP rank holds more.
        """
        kv = self._passes.store.tensors.kv
        kv.zero_()
        (table,) = self._tables(1, tokens)
        self._passes.read(ReadCall(torch.arange(tokens) % 7, 0, table, 0, tokens, False))
        keys = kv[:, 0, 0]  # first layer, [blocks, kv_heads, block_tokens, head_dim]
        return int((keys != 0).any(dim=-1).any(dim=1).sum())

    @property
    def kv_bytes(self) -> int:
        """Memory of KV on rank 0."""
        return self._passes.store.tensors.kv.nbytes

    def _tables(self, batch: int, tokens: int) -> torch.Tensor:
        blocks = -(-tokens // self._block_tokens)
        return torch.arange(batch * blocks).view(batch, blocks)


@contextlib.contextmanager
def measured_group(
    settings: Settings, model: ModelConfig, layout: ParallelLayout, hop_b: bool
) -> Iterator[MeasuredGroup]:
    """Start a group in float32 and end it afterwards."""
    drafts = max(settings.draft_tokens)
    most_tokens = max(settings.contexts) + drafts + 1
    config = WorkerConfig(
        worker_id="bench",
        role="decode",
        model_path=str(settings.model),
        model_name="bench",
        # Whole blocks for every request, also when a block spans several ranks.
        kv_tokens=settings.batch * (most_tokens + 16 * layout.kvp),
        max_requests=settings.batch,
        max_checkpoints=0,
        threads=settings.threads,
        kvp=layout.kvp,
        tpa=layout.tpa,
        tpf=layout.tpf,
        ep=layout.ep,
        interleave=layout.interleave,
        hop_b=hop_b,
        draft_tokens=drafts,
    )
    passes, group = start_ranks(config, model)
    try:
        traffic = Traffic() if group is None else group.traffic
        yield MeasuredGroup(passes, traffic, block_tokens_of_group(config), model.hidden_size)
    finally:
        if group is not None:
            group.close()
