"""What is moved in the bench: a model's state and the pairs of layouts. Pure.

The model has the attention of an 8-layer GQA hybrid (2 KV heads of 128, bfloat16: 8 KiB a token)
and a Mamba state that is small beside a long prompt, so that figures are about moving blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import torch

from workers.parallel.layout import ParallelLayout
from workers.state.geometry import StateGeometry
from workers.state.layout import StateLayout

GEOMETRY: Final = StateGeometry(
    attn_layers=8,
    kv_heads=2,
    head_dim=128,
    mamba_layers=8,
    conv_kernel=4,
    ssm_heads=32,
    ssm_groups=8,
    ssm_head_dim=64,
    ssm_state_size=128,
    block_tokens=16,
    dtype=torch.bfloat16,
)
LENGTHS: Final = (1024, 8192, 32768)
QUICK_LENGTHS: Final = (1024,)
JUDGED_TOKENS: Final = 8192  # goals are for prompts of this length and longer


@dataclass(frozen=True, slots=True)
class Pair:
    """A source and a target layout."""

    name: str
    source: ParallelLayout
    target: ParallelLayout
    block_tokens: int = 16

    @property
    def equal(self) -> bool:
        """Whether both sides share state alike."""
        return (self.source.kvp, self.source.tpa) == (self.target.kvp, self.target.tpa)

    @property
    def layouts(self) -> tuple[StateLayout, StateLayout]:
        geometry = replace(GEOMETRY, block_tokens=self.block_tokens)
        return StateLayout(geometry, self.source), StateLayout(geometry, self.target)


_TP1, _TP2 = ParallelLayout(), ParallelLayout.tensor_parallel(2)
_KVP2, _KVP2_64 = (ParallelLayout(kvp=2, ep=2, interleave=tokens) for tokens in (16, 64))
PAIRS: Final = (
    Pair("tp1 -> tp1", _TP1, _TP1),
    Pair("tp2 -> tp2", _TP2, _TP2),
    Pair("tp1 -> kvp2", _TP1, _KVP2),
    Pair("tp2 -> kvp2", _TP2, _KVP2),
    Pair("tp2 -> tp1", _TP2, _TP1),
    # Where heads are cut differently a run is a block of one head: longer blocks, longer runs.
    Pair("tp2 -> kvp2, 64", _TP2, _KVP2_64, 64),
    Pair("tp2 -> tp1, 64", _TP2, _TP1, 64),
)
