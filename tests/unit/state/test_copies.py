"""Coalesced copies move the same bytes, once, in as few descriptors as possible."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from workers.state.copies import Copies, coalesce, make_copies

PART = 8


def _bytes_moved(copies: Copies) -> list[tuple[int, int]]:
    """Every (source address, target address) pair of bytes, sorted."""
    return sorted(
        (int(source) + i, int(target) + i)
        for source, target, length in copies.tolist()
        for i in range(length)
    )


def _parts(sources: list[int], targets: list[int]) -> Copies:
    addresses = [np.array(parts, dtype=np.uint64) * np.uint64(PART) for parts in (sources, targets)]
    return make_copies(addresses[0] + np.uint64(4096), addresses[1] + np.uint64(10**15), PART)


def _least(sources: list[int], targets: list[int]) -> int:
    """Parts whose predecessor in the source is not also their predecessor in the target."""
    target_of = dict(zip(sources, targets, strict=True))
    return sum(target_of.get(s - 1) != t - 1 for s, t in target_of.items())


@given(st.data(), st.integers(1, 24))
def test_every_byte_moves_exactly_once_in_the_fewest_copies(
    data: st.DataObject, count: int
) -> None:
    places = st.lists(st.integers(0, 40), min_size=count, max_size=count, unique=True)
    sources, targets = data.draw(places), data.draw(places)
    copies = _parts(sources, targets)

    joined = coalesce(copies)

    assert _bytes_moved(joined) == _bytes_moved(copies)
    assert len(joined) == _least(sources, targets)


def test_contiguous_parts_become_one_copy_whatever_their_order() -> None:
    joined = coalesce(_parts([5, 3, 4], [9, 7, 8]))
    assert joined.tolist() == [[4096 + 3 * PART, 10**15 + 7 * PART, 3 * PART]]


def test_parts_contiguous_at_one_end_only_stay_apart() -> None:
    assert len(coalesce(_parts([0, 1, 2], [2, 1, 0]))) == 3


def test_parts_of_different_length_join_too() -> None:
    copies = np.array([[0, 100, 4], [4, 104, 16], [20, 121, 1]], dtype=np.uint64)
    assert coalesce(copies).tolist() == [[0, 100, 20], [20, 121, 1]]


def test_no_copies_stay_no_copies() -> None:
    assert len(coalesce(np.empty((0, 3), dtype=np.uint64))) == 0
