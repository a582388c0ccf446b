"""State moves between any two layouts: every byte that is due once, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.state.shapes import SMALL, Memory, Whole, blank, geometries, layouts
from workers.parallel.layout import ParallelLayout
from workers.state.copies import LENGTH, Copies, coalesce
from workers.state.geometry import StateGeometry
from workers.state.layout import CONV, DRAFT_HIDDEN, KV, SSM, StateLayout
from workers.state.reshard import Extent, PairCopies, Places, meeting_pairs, reshard

SLOTS = 3


def _places(data: st.DataObject, layout: StateLayout, tokens: int) -> tuple[Places, int]:
    """Blocks in any order among a few more, and a slot."""
    needed = layout.blocks_for(tokens)
    order = data.draw(st.permutations(range(needed + 2)))
    return Places(order[:needed], data.draw(st.integers(0, SLOTS - 1))), needed + 2


def _apply(
    plan: dict[tuple[int, int], PairCopies], sources: list[Memory], targets: list[Memory]
) -> list[Memory]:
    """Do the copies; returns how often each byte of the targets was written."""
    written = [{kind: np.zeros_like(each) for kind, each in rank.items()} for rank in targets]
    for (s, t), kinds in plan.items():
        for kind, copies in kinds.items():
            for here, there, length in coalesce(copies).tolist():
                targets[t][kind][there : there + length] = sources[s][kind][here : here + length]
                written[t][kind][there : there + length] += 1
    return written


def _equal(left: list[Memory], right: list[Memory]) -> bool:
    return all(
        np.array_equal(a[kind], b[kind]) for a, b in zip(left, right, strict=True) for kind in a
    )


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_layout_receives_exactly_its_share_and_gives_it_back(data: st.DataObject) -> None:
    geometry = data.draw(geometries())
    source, target = data.draw(layouts(geometry)), data.draw(layouts(geometry))
    tokens = data.draw(st.integers(1, 40))
    whole = Whole.random(geometry, tokens, 7)
    (here, blocks_here), (there, blocks_there) = (
        _places(data, layout, tokens) for layout in (source, target)
    )
    sources, targets = blank(source, blocks_here, SLOTS, 1), blank(target, blocks_there, SLOTS, 2)
    wanted, due = blank(target, blocks_there, SLOTS, 2), blank(target, blocks_there, SLOTS, 0)
    ones = replace(whole, **{name: np.ones_like(getattr(whole, name)) for name in whole.__slots__})
    for rank in source.ranks:
        whole.place(source, rank, here, sources[rank])
    for rank in target.ranks:
        whole.place(target, rank, there, wanted[rank])
        ones.place(target, rank, there, due[rank])
    extent = Extent.whole(source, tokens)

    plan = reshard(source, target, extent, here, there)
    written = _apply(plan, sources, targets)

    assert _equal(targets, wanted), "each rank has its share, and what else it held"
    assert _equal(written, due), "every byte due was written once, no other byte at all"
    assert set(plan) == meeting_pairs(source, target, tokens)
    back = [{kind: np.zeros_like(each) for kind, each in rank.items()} for rank in sources]
    again = blank(source, blocks_here, SLOTS, 0)
    for rank in source.ranks:
        whole.place(source, rank, here, again[rank])
    _apply(reshard(target, source, extent, there, here), targets, back)
    assert _equal(back, again), "there and back is the identity"


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_parts_compose_to_the_whole(data: st.DataObject) -> None:
    geometry = data.draw(geometries())
    source, target = data.draw(layouts(geometry)), data.draw(layouts(geometry))
    tokens = data.draw(st.integers(1, 40))
    (here, blocks_here), (there, blocks_there) = (
        _places(data, layout, tokens) for layout in (source, target)
    )
    sources = blank(source, blocks_here, SLOTS, 1)
    for rank in source.ranks:
        Whole.random(geometry, tokens, 5).place(source, rank, here, sources[rank])
    whole, parts = (blank(target, blocks_there, SLOTS, 2) for _ in range(2))
    once = _apply(
        reshard(source, target, Extent.whole(source, tokens), here, there), sources, whole
    )

    cuts = sorted(data.draw(st.sets(st.integers(1, tokens))) | {0, tokens})
    layers = geometry.mamba_layers
    layer_cuts = sorted(data.draw(st.sets(st.integers(0, layers))) | {0, layers})
    total = [{kind: np.zeros_like(each) for kind, each in rank.items()} for rank in parts]
    extents = [
        *(Extent(a, b) for a, b in pairwise(cuts)),
        *(Extent(0, 0, a, b) for a, b in pairwise(layer_cuts)),
        Extent(hidden=True),
    ]
    for extent in extents:
        plan = reshard(source, target, extent, here, there)
        for rank, counts in enumerate(_apply(plan, sources, parts)):
            for kind, count in counts.items():
                total[rank][kind] += count

    assert _equal(parts, whole)
    assert _equal(total, once)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_the_order_of_bytes_does_not_depend_on_the_places(data: st.DataObject) -> None:
    geometry = data.draw(geometries())
    source, target = data.draw(layouts(geometry)), data.draw(layouts(geometry))
    tokens = data.draw(st.integers(1, 40))
    extent = Extent.whole(source, tokens)
    whole = Whole.random(geometry, tokens, 3)
    read: list[dict[tuple[int, int], list[tuple[int, bytes]]]] = []
    for _ in range(2):
        (here, blocks_here), (there, _) = (_places(data, each, tokens) for each in (source, target))
        sources = blank(source, blocks_here, SLOTS, 1)
        for rank in source.ranks:
            whole.place(source, rank, here, sources[rank])
        plan = reshard(source, target, extent, here, there)
        read.append(
            {
                pair: [
                    (kind, b"".join(bytes(sources[pair[0]][kind][a : a + n]) for a, _, n in copies))
                    for kind, copies in kinds.items()
                ]
                for pair, kinds in plan.items()
            }
        )
    assert read[0] == read[1]


def _fewest(copies: Copies) -> int:
    """Bytes whose predecessor at one end is not also their predecessor at the other."""
    target_of = {
        here + byte: there + byte
        for here, there, length in copies.tolist()
        for byte in range(length)
    }
    return sum(target_of.get(here - 1) != there - 1 for here, there in target_of.items())


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_descriptors_are_the_fewest_that_move_these_bytes(data: st.DataObject) -> None:
    geometry = data.draw(geometries())
    source, target = data.draw(layouts(geometry)), data.draw(layouts(geometry))
    tokens = data.draw(st.integers(1, 24))
    (here, _), (there, _) = (_places(data, layout, tokens) for layout in (source, target))
    plan = reshard(source, target, Extent.whole(source, tokens), here, there)
    for kinds in plan.values():
        for copies in kinds.values():
            assert len(coalesce(copies)) == _fewest(copies)


@pytest.mark.parametrize(
    "parallel",
    [
        ParallelLayout(),
        ParallelLayout.tensor_parallel(2),
        ParallelLayout.tensor_parallel(4),
        ParallelLayout(2, 2, 4, 1, 4),
        ParallelLayout(4, 1, 1, 4, 2),
    ],
)
def test_equal_layouts_move_one_run_of_each_kind_between_equal_ranks(
    parallel: ParallelLayout,
) -> None:
    geometry = replace(SMALL, draft_attn_layers=1, draft_hidden_size=8, max_draft_tokens=3)
    layout = StateLayout(geometry, parallel)
    blocks = range(3, 13)
    tokens = 10 * layout.block_span_tokens
    plan = reshard(
        layout, layout, Extent.whole(layout, tokens), Places(blocks, 0), Places(blocks, 1)
    )
    assert set(plan) == {(rank, rank) for rank in layout.ranks}
    for kinds in plan.values():
        assert set(kinds) == set(layout.kinds)
        assert {kind: len(coalesce(copies)) for kind, copies in kinds.items()} == dict.fromkeys(
            kinds, 1
        )


def test_replicated_parts_come_from_all_that_have_them() -> None:
    """8 ranks hold 2 heads and 2 groups four times over: none of them sends everything."""
    source = StateLayout(replace(SMALL, ssm_heads=8), ParallelLayout.tensor_parallel(8))
    target = StateLayout(replace(SMALL, ssm_heads=8), ParallelLayout(4, 1, 1, 4, 4))
    tokens = 64
    places = [Places(range(layout.blocks_for(tokens)), 0) for layout in (source, target)]
    plan = reshard(source, target, Extent.whole(source, tokens), *places)
    sent = [0] * 8
    for (s, _), kinds in plan.items():
        sent[s] += int(kinds.get(KV, np.empty((0, 3)))[:, LENGTH].sum())
    assert min(sent) == max(sent) > 0


def test_too_few_blocks_are_refused() -> None:
    layout = StateLayout(SMALL)
    with pytest.raises(ValueError, match="9 tokens reach block 2 of a rank, found 2 blocks"):
        reshard(layout, layout, Extent.whole(layout, 9), Places((0, 1), 0), Places((0, 1, 2), 0))


def test_a_long_prompt_is_planned_with_few_arrays() -> None:
    """32k tokens of 50 layers: the work is in NumPy, so the plan has that many rows at once."""
    geometry = StateGeometry(
        attn_layers=8,
        kv_heads=2,
        head_dim=128,
        mamba_layers=42,
        conv_kernel=4,
        ssm_heads=64,
        ssm_groups=8,
        ssm_head_dim=64,
        ssm_state_size=128,
        block_tokens=16,
        dtype=torch.bfloat16,
    )
    source = StateLayout(geometry, ParallelLayout.tensor_parallel(2))
    target = StateLayout(geometry, ParallelLayout(2, 1, 1, 2, 16))
    tokens = 32768
    places = [Places(range(layout.blocks_for(tokens)), 0) for layout in (source, target)]
    plan = reshard(source, target, Extent.whole(source, tokens), *places)
    blocks = tokens // 16
    assert sum(len(kinds[KV]) for kinds in plan.values()) == blocks * 2, (
        "all layers of a head in one"
    )
    assert sum(int(kinds[KV][:, LENGTH].sum()) for kinds in plan.values()) == (
        source.part_bytes(KV) * 2 * blocks
    )
    # Mamba heads are cut alike on both sides, so these kinds stay where they are, in one run.
    for rank in (0, 1):
        assert len(coalesce(plan[rank, rank][SSM])) == len(coalesce(plan[rank, rank][CONV])) == 1
    assert all(DRAFT_HIDDEN not in kinds for kinds in plan.values())
