"""The shape of what one rank computes.

Exists so that the maths needs no notion of ranks for its sizes: a rank's heads, groups and columns
are a smaller model's, and only what crosses ranks is code of its own. All ranks of a layout have
the same shape; the router, the latent dimension and the vocabulary keep their size.
"""

from __future__ import annotations

from dataclasses import replace

from workers.model.config import ModelConfig
from workers.parallel.layout import ParallelLayout


def rank_config(config: ModelConfig, layout: ParallelLayout) -> ModelConfig:
    """The config of one rank; the layout must be one that `workers.parallel.rules` allows."""
    ranks = layout.size
    return replace(
        config,
        num_attention_heads=config.num_attention_heads // layout.tpa,
        # With more TPA ranks than KV heads, a head is on several ranks.
        num_key_value_heads=_at_least_one(config.num_key_value_heads, layout.tpa),
        intermediate_size=config.intermediate_size // ranks,
        mamba_num_heads=config.mamba_num_heads // ranks,
        mamba_groups=_at_least_one(config.mamba_groups, ranks),
        moe_intermediate_size=config.moe_intermediate_size // layout.tpf,
        moe_shared_expert_intermediate_size=config.moe_shared_expert_intermediate_size // ranks,
    )


def ranks_per_group(config: ModelConfig, layout: ParallelLayout) -> int:
    """How many ranks share the heads of one Mamba group."""
    return max(1, layout.size // config.mamba_groups) if config.mamba_groups else 1


def _at_least_one(size: int, parts: int) -> int:
    return max(size // parts, 1) if size else 0
