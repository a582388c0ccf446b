"""What a rank of a group holds, and which layouts a model cannot have."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.state.shapes import SMALL, geometries, layouts
from workers.parallel.layout import ParallelLayout
from workers.state.layout import CONV, DRAFT_HIDDEN, KV, SSM, StateLayout


@given(st.data())
def test_the_ranks_together_hold_every_head_and_group_equally_often(data: st.DataObject) -> None:
    layout = data.draw(layouts(data.draw(geometries())))
    geometry, ranks = layout.geometry, layout.ranks
    for whole, held in (
        (geometry.kv_heads, [layout.kv_heads(rank) for rank in ranks]),
        (geometry.ssm_heads, [layout.ssm_heads(rank) for rank in ranks]),
        (geometry.ssm_groups, [layout.ssm_groups(rank) for rank in ranks]),
    ):
        holders = [sum(part in mine for mine in held) for part in range(whole)]
        assert min(holders) == max(holders) > 0


@given(st.data(), st.integers(0, 200))
def test_one_block_table_serves_every_rank(data: st.DataObject, tokens: int) -> None:
    layout = data.draw(layouts(data.draw(geometries())))
    parallel, block_tokens = layout.parallel, layout.geometry.block_tokens
    most = max(parallel.local_tokens(rank, tokens) for rank in range(parallel.kvp))
    assert layout.blocks_for(tokens) == -(-most // block_tokens)


def test_heads_of_a_mamba_group_are_where_its_b_and_c_are() -> None:
    layout = StateLayout(replace(SMALL, ssm_heads=8), ParallelLayout.tensor_parallel(4))
    share = layout.geometry.ssm_heads // layout.geometry.ssm_groups
    for rank in layout.ranks:
        assert {head // share for head in layout.ssm_heads(rank)} <= set(layout.ssm_groups(rank))


def test_sizes_of_a_rank() -> None:
    layout = StateLayout(
        replace(SMALL, draft_hidden_size=6), ParallelLayout(kvp=2, tpa=2, tpf=4, interleave=2)
    )
    assert layout.part_bytes(KV) == 2 * 2 * 1 * 4 * 8 * 2
    assert layout.part_bytes(CONV) == 3 * (4 + 2 * 8) * 3 * 2
    assert layout.part_bytes(SSM) == 3 * 1 * 4 * 8 * 4
    assert layout.part_bytes(DRAFT_HIDDEN) == 12
    assert layout.block_span_tokens == 8


@given(st.data())
def test_a_peer_is_known_by_its_message(data: st.DataObject) -> None:
    geometry = data.draw(geometries())
    mine, theirs = data.draw(layouts(geometry)), data.draw(layouts(geometry))
    known = mine.of_peer(theirs.to_proto())
    assert known.to_proto() == theirs.to_proto()
    assert [known.part_bytes(kind) for kind in known.kinds] == [
        theirs.part_bytes(kind) for kind in theirs.kinds
    ]


@pytest.mark.parametrize(
    ("parallel", "words"),
    [
        (ParallelLayout(kvp=2, tpf=2, interleave=3), "interleave 3: must divide block_tokens 4"),
        (ParallelLayout.tensor_parallel(3), "kv_heads 2: cannot be shared equally by tpa 3"),
        (ParallelLayout.tensor_parallel(8), "ssm_heads 4: not divisible by the 8 ranks"),
    ],
)
def test_impossible_layouts_are_refused(parallel: ParallelLayout, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        StateLayout(SMALL, parallel)
