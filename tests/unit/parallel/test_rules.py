"""A layout that a model cannot be cut into is refused with the rule that it breaks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.checkpoint.mixed import small_config
from workers.checkpoint import RankShard
from workers.checkpoint.schema import model_schema, mtp_schema
from workers.parallel.layout import ParallelLayout
from workers.parallel.rules import IllegalLayout, check_layout

# 8 query and 2 KV heads, 16 Mamba heads in 2 groups, 8 experts of 48 columns, a shared expert of
# 128, an MLP of 64, a vocabulary of 96.
CONFIG = small_config()


@pytest.mark.parametrize(
    ("layout", "rule"),
    [
        (ParallelLayout(tpa=4, tpf=4), "tpa 4 is more than num_key_value_heads 2"),
        (ParallelLayout(kvp=2, tpa=4, tpf=8), "tpa 4 is more than num_key_value_heads 2"),
        (ParallelLayout(kvp=3, ep=3), "num_attention_heads 8 must be divisible by kvp x tpa = 3"),
        (ParallelLayout(kvp=3, ep=3), "mamba_num_heads 16 must be divisible by kvp x tpa = 3"),
        (ParallelLayout(kvp=3, ep=3), "n_groups 2 and kvp x tpa = 3 ranks: one must divide"),
        (ParallelLayout(kvp=3, ep=3), "n_routed_experts 8 must be divisible by ep = 3"),
        (ParallelLayout(kvp=5, tpf=5), "moe_intermediate_size 48 must be divisible by tpf = 5"),
        (
            ParallelLayout(kvp=3, tpf=3),
            "moe_shared_expert_intermediate_size 128 must be divisible by kvp x tpa = 3",
        ),
        (ParallelLayout(kvp=3, tpf=3), "intermediate_size 64 must be divisible by kvp x tpa = 3"),
        (ParallelLayout(kvp=2, ep=2, interleave=5), "interleave 5 must divide block_tokens 16"),
    ],
)
def test_an_illegal_layout_is_refused_by_its_rule(layout: ParallelLayout, rule: str) -> None:
    with pytest.raises(IllegalLayout, match=rule):
        check_layout(CONFIG, layout, 16)


def test_kv_heads_are_cut_evenly() -> None:
    config = replace(CONFIG, num_attention_heads=12, num_key_value_heads=6, mamba_groups=4)
    with pytest.raises(IllegalLayout, match="num_key_value_heads 6 must be divisible by tpa = 4"):
        check_layout(config, ParallelLayout(tpa=4, tpf=4), 16)


def test_prefill_ranks_may_repeat_kv_heads() -> None:
    layout = ParallelLayout.tensor_parallel(4)
    check_layout(CONFIG, layout, 16, repeat_kv_heads=True)
    with pytest.raises(IllegalLayout, match="tpa 3 must be divisible by num_key_value_heads"):
        check_layout(CONFIG, ParallelLayout.tensor_parallel(3), 16, repeat_kv_heads=True)


def test_one_rank_fits_any_model() -> None:
    check_layout(replace(CONFIG, mamba_num_heads=7), ParallelLayout(interleave=5), 16)


def test_what_the_rules_allow_can_be_cut() -> None:
    """No legal layout fails later, when weights are read."""
    schema = model_schema(CONFIG) | mtp_schema(CONFIG)
    legal = 0
    for kvp in range(1, 9):
        for tpa in range(1, 9):
            for tpf in (n for n in range(1, 65) if kvp * tpa % n == 0):
                layout = ParallelLayout(kvp, tpa, tpf, kvp * tpa // tpf)
                try:
                    check_layout(CONFIG, layout, 16)
                except IllegalLayout:
                    continue
                legal += 1
                for name, expected in schema.items():
                    RankShard(layout.size - 1, layout).region(name, expected.shape, CONFIG)
    assert legal == 19  # 1 + 2 x 2 + 2 x 3 + 2 x 4, for 1, 2, 4 and 8 ranks
