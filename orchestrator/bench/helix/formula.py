"""What communication and memory of a Helix group should be, from the paper alone. Pure.

Helix (arXiv 2507.07120, section 2.1): in the all-to-all each rank sends slices of B x H / (KVP TPA)
partial outputs to every other rank of its KVP group, and one log-sum-exp (float32 here) for each
query and head. Nothing in it depends on the number of tokens in the context.
"""

from __future__ import annotations

from workers.model.config import ModelConfig
from workers.parallel.layout import ParallelLayout

_LSE_BYTES = 4


def exchanged_bytes(
    config: ModelConfig, layout: ParallelLayout, batch: int, draft_tokens: int, element_bytes: int
) -> int:
    """Bytes that one rank sends in the all-to-alls of one step: drafting, then verifying.

    A step verifies k + 1 positions in every attention layer, and drafts k times with one query in
    every attention layer of the MTP block.
    """
    queries = config.attention_layers * (draft_tokens + 1)
    queries += config.mtp_attention_layers * draft_tokens
    heads = config.num_attention_heads // layout.size
    slice_bytes = batch * queries * heads * (config.head_dim * element_bytes + _LSE_BYTES)
    return (layout.kvp - 1) * slice_bytes


def most_tokens_of_a_rank(layout: ParallelLayout, tokens: int) -> float:
    """What the fullest KVP rank may hold of a request: total / KVP within one interleave."""
    return tokens / layout.kvp + layout.interleave
