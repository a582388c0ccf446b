"""Which layouts a model can be cut into.

Exists so that an illegal one is refused at the start, before a byte of weights is read, with the
rule that it breaks. Nothing here is a matter of speed.
"""

from __future__ import annotations

from collections.abc import Iterator

from workers.model.config import LayerKind, ModelConfig
from workers.parallel.layout import ParallelLayout


class IllegalLayout(ValueError):
    """A layout that the model cannot be cut into; the message names the rule."""


def check_layout(
    config: ModelConfig, layout: ParallelLayout, block_tokens: int, *, repeat_kv_heads: bool = False
) -> None:
    """Refuse a layout that does not fit a model.

    Args:
        config: the model, whole.
        layout: how it is to be cut. That its two products agree is `ParallelLayout`'s own rule.
        block_tokens: tokens of a KV block on one rank.
        repeat_kv_heads: whether several TPA ranks may hold the same KV head, as prefill workers do,
            which keep KV for a moment only.

    Raises:
        IllegalLayout: naming every rule that is broken.
    """
    if layout.size == 1:
        return
    broken = list(_broken(config, layout, block_tokens, repeat_kv_heads))
    if broken:
        raise IllegalLayout("; ".join(broken))


def _broken(
    config: ModelConfig, layout: ParallelLayout, block_tokens: int, repeat_kv_heads: bool
) -> Iterator[str]:
    kinds = {*config.layers, *config.mtp_layers}
    ranks = layout.size
    if LayerKind.ATTENTION in kinds:
        yield from _broken_by_attention(config, layout, repeat_kv_heads)
    if block_tokens % layout.interleave and layout.kvp > 1:
        yield (
            f"interleave {layout.interleave} must divide block_tokens {block_tokens}, "
            "so that no turn of a KVP rank crosses a block"
        )
    if LayerKind.MAMBA in kinds:
        heads, groups = config.mamba_num_heads, config.mamba_groups
        yield from _divides("mamba_num_heads", heads, "kvp x tpa", ranks)
        if ranks % groups and groups % ranks:
            yield (
                f"n_groups {groups} and kvp x tpa = {ranks} ranks: one must divide the other, so "
                "that a rank has whole groups or ranks share one"
            )
    if LayerKind.MOE in kinds:
        yield from _divides("n_routed_experts", config.n_routed_experts, "ep", layout.ep)
        columns = config.moe_intermediate_size
        yield from _divides("moe_intermediate_size", columns, "tpf", layout.tpf)
        shared = config.moe_shared_expert_intermediate_size
        if config.n_shared_experts:
            name = "moe_shared_expert_intermediate_size"
            yield from _divides(name, shared, "kvp x tpa", ranks)
    if LayerKind.MLP in kinds:
        yield from _divides("intermediate_size", config.intermediate_size, "kvp x tpa", ranks)


def _broken_by_attention(
    config: ModelConfig, layout: ParallelLayout, repeat_kv_heads: bool
) -> Iterator[str]:
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    yield from _divides("num_attention_heads", heads, "kvp x tpa", layout.size)
    if layout.tpa > kv_heads and not repeat_kv_heads:
        yield (
            f"tpa {layout.tpa} is more than num_key_value_heads {kv_heads}: KV would be stored "
            f"more than once; set tpa to {kv_heads} at most and kvp higher"
        )
    elif layout.tpa > kv_heads:
        yield from _divides("tpa", layout.tpa, "num_key_value_heads", kv_heads)
    else:
        yield from _divides("num_key_value_heads", kv_heads, "tpa", layout.tpa)


def _divides(name: str, size: int, by: str, parts: int) -> Iterator[str]:
    if size % parts:
        yield f"{name} {size} must be divisible by {by} = {parts}"
