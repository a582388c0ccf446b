"""What ranks compute together from their parts of a layer is what one rank computes from all."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.checkpoint.mixed import small_config
from tests.unit.checkpoint.test_region import chosen
from tests.unit.parallel.threaded import ThreadRank, on_every_rank
from workers.checkpoint import RankShard
from workers.checkpoint.schema import model_schema
from workers.model import moe
from workers.model.assembly import assemble
from workers.model.norm import gated_group_norm
from workers.model.rank_config import rank_config
from workers.model.ranks import Ranks
from workers.model.weights import MoeWeights
from workers.model.word_ranks import best_word, gather_scores
from workers.parallel.layout import ParallelLayout

CONFIG = small_config()
_MOE_LAYER = 1


def weights(seed: int) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(expected.shape, generator=rng) * expected.shape[-1] ** -0.5
        for name, expected in model_schema(CONFIG).items()
    }


def experts(tensors: dict[str, Tensor], ranks: ThreadRank | None) -> MoeWeights:
    config, each = CONFIG, tensors
    if ranks is not None:
        config = rank_config(CONFIG, ranks.layout)
        shard = RankShard(ranks.rank, ranks.layout)
        each = {
            name: chosen(tensor, shard.region(name, tuple(tensor.shape), CONFIG))
            for name, tensor in tensors.items()
        }
    whole: Ranks | None = ranks
    mixer = assemble(config, each, whole).layers[_MOE_LAYER].mixer
    assert isinstance(mixer, MoeWeights)
    return mixer


@settings(max_examples=25, deadline=None)
@given(
    layout=st.sampled_from(
        [
            ParallelLayout(kvp=2, ep=2),
            ParallelLayout(kvp=2, tpf=2),
            ParallelLayout(kvp=4, ep=2, tpf=2),
            ParallelLayout(kvp=4, tpa=2, ep=8),
        ]
    ),
    tokens=st.sampled_from([1, 5, 16, 17, 60]),
    seed=st.integers(0, 50),
)
def test_experts_over_ranks_are_the_experts_of_one(
    layout: ParallelLayout, tokens: int, seed: int
) -> None:
    """Few tokens run all experts of a rank at once, many run them one by one."""
    tensors = weights(seed)
    x = torch.randn(tokens, CONFIG.hidden_size, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        whole = moe.mix(x, experts(tensors, None), CONFIG)

        def part(ranks: ThreadRank) -> Tensor:
            with torch.no_grad():
                return moe.mix(x, experts(tensors, ranks), rank_config(CONFIG, layout))

        for found in on_every_rank(layout, part):
            torch.testing.assert_close(found, whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("groups", "ranks"), [(1, 2), (2, 4), (1, 4), (4, 2)])
def test_the_gated_norm_of_a_cut_group_is_that_of_the_whole(groups: int, ranks: int) -> None:
    rng = torch.Generator().manual_seed(groups)
    y, gate = torch.randn(2, 3, 5, 32, generator=rng)
    weight = torch.rand(32, generator=rng) + 0.5
    whole = gated_group_norm(y, gate, weight, groups, 1e-5)
    layout = ParallelLayout(kvp=ranks, ep=ranks)
    size = 32 // ranks

    def part(rank: ThreadRank) -> Tensor:
        own = slice(rank.rank * size, (rank.rank + 1) * size)
        local = max(groups // ranks, 1)
        return gated_group_norm(y[..., own], gate[..., own], weight[own], local, 1e-5, rank)

    parts = on_every_rank(layout, part, ranks_per_group=max(ranks // groups, 1))
    torch.testing.assert_close(torch.cat(parts, dim=-1), whole, atol=1e-6, rtol=1e-5)


@given(vocab=st.integers(1, 23), ranks=st.sampled_from([2, 4]), seed=st.integers(0, 99))
def test_scores_are_joined_and_the_first_of_the_best_words_wins(
    vocab: int, ranks: int, seed: int
) -> None:
    """Few values, so that words tie; a vocabulary that does not divide, even one of fewer words."""
    rng = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 3, (2, 3, vocab), generator=rng).float()
    layout = ParallelLayout(kvp=ranks, ep=ranks)
    words = -(-vocab // ranks)

    def part(rank: ThreadRank) -> tuple[Tensor, Tensor]:
        own = scores[..., rank.rank * words : (rank.rank + 1) * words]
        return gather_scores(own, vocab, rank), best_word(own, vocab, rank)

    found = on_every_rank(layout, part)
    assert torch.equal(found[0][0], scores)
    first = torch.tensor([[row.tolist().index(row.max()) for row in batch] for batch in scores])
    for _, best in found:
        assert torch.equal(best, first)
