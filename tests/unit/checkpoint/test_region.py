"""A region is the product of its spans, and its boxes tile it."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from workers.checkpoint.region import Region, Spans, box_items, box_slices, joined, length


def indices(spans: Spans) -> list[int]:
    return [index for begin, end in spans for index in range(begin, end)]


def chosen(whole: Tensor, region: Region) -> Tensor:
    """The region of a tensor, by picking indices one dimension after another."""
    for dimension, spans in enumerate(region.dimensions):
        whole = whole.index_select(dimension, torch.tensor(indices(spans), dtype=torch.int64))
    return whole


SHAPE = (7, 5, 6)
spans_of = [
    st.lists(
        st.tuples(st.integers(0, size), st.integers(0, size)).map(lambda p: (min(p), max(p))),
        max_size=3,
    ).map(lambda spans: joined(tuple(spans)))
    for size in SHAPE
]


@given(dimensions=st.tuples(*spans_of))
def test_boxes_tile_the_region(dimensions: tuple[Spans, ...]) -> None:
    region = Region(dimensions)
    whole = torch.arange(7 * 5 * 6).view(SHAPE)
    kept = torch.full(region.shape, -1)
    items = 0
    for box, place in region.boxes():
        assert (kept[box_slices(place)] == -1).all()
        kept[box_slices(place)] = whole[box_slices(box)]
        items += box_items(box)
    assert torch.equal(kept, chosen(whole, region))
    assert items == kept.numel()


@given(spans=spans_of[0])
def test_joined_spans_keep_their_indices_in_fewest_runs(spans: Spans) -> None:
    cut = tuple((index, index + 1) for index in indices(spans))
    assert joined(cut) == joined(spans)
    assert indices(joined(cut)) == indices(spans)
    assert length(joined(cut)) == len(indices(spans))
