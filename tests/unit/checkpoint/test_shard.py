"""Each rank holds the parts of a weight that it computes with, and together they hold all."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.checkpoint.mixed import small_config
from tests.unit.checkpoint.test_region import indices
from workers.checkpoint import RankShard
from workers.checkpoint.region import Region, Spans
from workers.checkpoint.schema import model_schema, mtp_schema
from workers.model.config import ModelConfig
from workers.parallel.layout import ParallelLayout

CONFIG = small_config()
SCHEMA = model_schema(CONFIG) | mtp_schema(CONFIG)
# (kvp, tpa, tpf, ep)
LAYOUTS = [
    (1, 1, 1, 1),
    (1, 2, 2, 1),
    (2, 1, 1, 2),
    (2, 2, 2, 2),
    (1, 4, 4, 1),
    (4, 2, 1, 8),
    (2, 4, 2, 4),
]


def ranks(layout: tuple[int, int, int, int]) -> list[RankShard]:
    kvp, tpa, tpf, ep = layout
    return [RankShard(rank, ParallelLayout(kvp, tpa, tpf, ep)) for rank in range(kvp * tpa)]


def region(shard: RankShard, name: str, config: ModelConfig = CONFIG) -> Region:
    return shard.region(name, SCHEMA[name].shape, config)


def test_one_rank_holds_everything() -> None:
    for name, expected in SCHEMA.items():
        assert region(RankShard(), name) == Region.whole(expected.shape)


# inner 128, two groups of state 16, 16 Mamba heads of 8, 8 query and 2 KV heads of 16, 8 experts
# of 48, a shared expert of 128, an MLP of 64, 96 words; rank 3 of kvp 2 x tpa 2 = tpf 2 x ep 2.
@pytest.mark.parametrize(
    ("name", "dimension", "spans"),
    [
        # gate, x, B, C, dt; the second group belongs to ranks 2 and 3.
        (
            "layers.0.mixer.in_proj.weight",
            0,
            ((96, 128), (224, 256), (272, 288), (304, 320), (332, 336)),
        ),
        ("layers.0.mixer.conv1d.weight", 0, ((96, 128), (144, 160), (176, 192))),
        ("layers.0.mixer.conv1d.bias", 0, ((96, 128), (144, 160), (176, 192))),
        ("layers.0.mixer.A_log", 0, ((12, 16),)),
        ("layers.0.mixer.norm.weight", 0, ((96, 128),)),
        ("layers.0.mixer.out_proj.weight", 1, ((96, 128),)),
        ("layers.3.mixer.q_proj.weight", 0, ((64, 128),)),
        ("layers.3.mixer.k_proj.weight", 0, ((16, 32),)),
        ("layers.3.mixer.v_proj.weight", 0, ((16, 32),)),
        ("layers.3.mixer.o_proj.weight", 1, ((96, 128),)),
        ("mtp.layers.0.mixer.o_proj.weight", 1, ((96, 128),)),
        ("layers.1.mixer.experts.up_proj", 0, ((4, 8),)),
        ("layers.1.mixer.experts.up_proj", 1, ((24, 48),)),
        ("layers.1.mixer.experts.down_proj", 2, ((24, 48),)),
        ("layers.1.mixer.shared_experts.up_proj.weight", 0, ((96, 128),)),
        ("layers.1.mixer.shared_experts.down_proj.weight", 1, ((96, 128),)),
        ("layers.5.mixer.up_proj.weight", 0, ((48, 64),)),
        ("layers.5.mixer.down_proj.weight", 1, ((48, 64),)),
        ("lm_head.weight", 0, ((72, 96),)),
    ],
)
def test_the_parts_of_a_rank(name: str, dimension: int, spans: Spans) -> None:
    shard = RankShard(3, ParallelLayout(kvp=2, tpa=2, tpf=2, ep=2))
    assert region(shard, name).dimensions[dimension] == spans


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ranks_cover_a_weight_evenly_or_replicate_whole_rows(
    layout: tuple[int, int, int, int],
) -> None:
    kvp, tpa, _, _ = layout
    size = kvp * tpa
    for name, expected in SCHEMA.items():
        held: Counter[tuple[int, ...]] = Counter()
        for shard in ranks(layout):
            kept = region(shard, name)
            held.update(product(*(indices(spans) for spans in kept.dimensions[:2])))
        assert set(held) == set(product(*(range(n) for n in expected.shape[:2]))), name
        allowed = {1, size}
        if ".q_proj" in name:
            allowed = {kvp}
        elif ".k_proj" in name or ".v_proj" in name:
            allowed = {kvp * max(1, tpa // CONFIG.num_key_value_heads)}
        elif ".in_proj" in name or ".conv1d" in name:
            allowed = {1, max(1, size // CONFIG.mamba_groups)}
        elif name.endswith("experts.down_proj"):
            allowed = {layout[2]}  # counted without the columns, which TPF cuts
        assert set(held.values()) <= allowed, name


@given(layout=st.sampled_from(LAYOUTS), seed=st.integers(0, 999))
def test_partial_products_of_the_ranks_add_up(layout: tuple[int, int, int, int], seed: int) -> None:
    """Rows of an up-projection and columns of its down-projection belong together."""
    rng = torch.Generator().manual_seed(seed)

    def weight(name: str) -> torch.Tensor:
        return torch.randn(SCHEMA[name].shape, generator=rng, dtype=torch.float64)

    at = "layers.1.mixer.experts"
    up, down = weight(f"{at}.up_proj"), weight(f"{at}.down_proj")
    x = torch.randn(3, CONFIG.expert_size, generator=rng, dtype=torch.float64)

    def experts(up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
        hidden = torch.einsum("eml,tl->etm", up, x).relu().square()
        return torch.einsum("elm,etm->tl", down, hidden)

    total = torch.zeros(3, CONFIG.expert_size, dtype=torch.float64)
    for shard in ranks(layout):
        rows = [torch.tensor(indices(s)) for s in region(shard, f"{at}.up_proj").dimensions]
        columns = [torch.tensor(indices(s)) for s in region(shard, f"{at}.down_proj").dimensions]
        mine_up = up[rows[0]][:, rows[1]]
        mine_down = down[columns[0]][:, :, columns[2]]
        total += experts(mine_up, mine_down)
    assert torch.allclose(total, experts(up, down))


@pytest.mark.parametrize("rank", [-1, 2])
def test_a_rank_that_the_layout_does_not_have_is_refused(rank: int) -> None:
    with pytest.raises(ValueError, match=f"rank {rank}: the layout has ranks 0 to 1"):
        RankShard(rank, ParallelLayout(kvp=2, ep=2))


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_a_vocabulary_that_does_not_divide_is_cut_into_almost_equal_parts(ranks: int) -> None:
    config = replace(CONFIG, vocab_size=83)
    layout = ParallelLayout.tensor_parallel(ranks)
    rows = [
        indices(RankShard(rank, layout).region("lm_head.weight", (83, 64), config).dimensions[0])
        for rank in range(ranks)
    ]
    assert [row for part in rows for row in part] == list(range(83))
    assert max(map(len, rows)) == -(-83 // ranks)


@pytest.mark.parametrize(
    ("layout", "name", "message"),
    [
        ((1, 3, 3, 1), "layers.3.mixer.q_proj.weight", "num_attention_heads 8"),
        ((1, 3, 3, 1), "layers.3.mixer.k_proj.weight", "tpa 3"),
        ((3, 1, 1, 3), "layers.0.mixer.A_log", "mamba_num_heads 16"),
        ((3, 1, 1, 3), "layers.0.mixer.conv1d.bias", "kvp x tpa 3"),
        ((3, 1, 1, 3), "layers.1.mixer.experts.up_proj", "experts 8"),
        ((5, 1, 5, 1), "layers.1.mixer.experts.up_proj", "moe_intermediate_size 48"),
    ],
)
def test_a_layout_that_does_not_divide_the_model_is_refused(
    layout: tuple[int, int, int, int], name: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        region(ranks(layout)[0], name)
