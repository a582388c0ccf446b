"""Tokens go round the KVP ranks: each has one owner, one place, and every rank a known share."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workers.model.kvp_paging import local_tokens
from workers.parallel.layout import ParallelLayout


@given(st.integers(1, 8), st.integers(1, 20), st.integers(0, 700))
def test_local_lengths_count_the_tokens_that_a_rank_owns(
    kvp: int, interleave: int, tokens: int
) -> None:
    layout = ParallelLayout(kvp=kvp, ep=kvp, interleave=interleave)
    owners = [layout.owner(token) for token in range(tokens)]
    counts = [layout.local_tokens(rank, tokens) for rank in range(kvp)]
    assert counts == [owners.count(rank) for rank in range(kvp)]
    # Memory of a rank is total / kvp within one interleave.
    assert all(abs(count - tokens / kvp) < interleave for count in counts)


@given(st.integers(1, 8), st.integers(1, 20), st.integers(1, 700))
def test_the_tokens_of_a_rank_lie_side_by_side_in_their_order(
    kvp: int, interleave: int, tokens: int
) -> None:
    layout = ParallelLayout(kvp=kvp, ep=kvp, interleave=interleave)
    for rank in range(kvp):
        own = [layout.local_index(t) for t in range(tokens) if layout.owner(t) == rank]
        assert own == list(range(len(own)))


@given(st.integers(1, 6), st.integers(1, 9), st.lists(st.integers(0, 500), min_size=1))
def test_lengths_as_a_tensor_are_the_same(kvp: int, interleave: int, tokens: list[int]) -> None:
    layout = ParallelLayout(kvp=kvp, ep=kvp, interleave=interleave)
    for rank in range(kvp):
        found = local_tokens(torch.tensor(tokens), layout, rank)
        assert found.tolist() == [layout.local_tokens(rank, count) for count in tokens]


def test_ranks_are_numbered_with_tpa_and_ep_outermost() -> None:
    layout = ParallelLayout(kvp=2, tpa=3, tpf=3, ep=2)
    assert [layout.kvp_rank(rank) for rank in range(6)] == [0, 1, 0, 1, 0, 1]
    assert [layout.tpa_rank(rank) for rank in range(6)] == [0, 0, 1, 1, 2, 2]
    assert [layout.tpf_rank(rank) for rank in range(6)] == [0, 1, 2, 0, 1, 2]
    assert [layout.ep_rank(rank) for rank in range(6)] == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"tpa": 2, "ep": 3}, "kvp 1 x tpa 2 ranks in attention, but tpf 1 x ep 3"),
        ({"kvp": 0, "ep": 0}, "kvp 0: must be at least 1"),
        ({"interleave": 0}, "interleave 0"),
    ],
)
def test_sizes_that_cannot_be_are_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ParallelLayout(**sizes)
