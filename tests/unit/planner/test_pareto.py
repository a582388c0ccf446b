"""Frontiers keep exactly what nothing else beats."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.planner.pareto import best_by_size, frontier, frontier_by_size

_POINTS = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=60)


@given(_POINTS)
def test_a_point_stays_unless_another_is_as_good_in_both(points: list[tuple[int, int]]) -> None:
    cost = np.array([one[0] for one in points], dtype=float)
    gain = np.array([one[1] for one in points], dtype=float)
    kept = {(cost[i], gain[i]) for i in frontier(cost, gain)}
    unbeaten = {
        (c, g)
        for c, g in zip(cost, gain, strict=True)
        if not any(
            (other_c <= c and other_g >= g and (other_c, other_g) != (c, g))
            for other_c, other_g in zip(cost, gain, strict=True)
        )
    }
    assert kept == unbeaten


def test_each_size_keeps_a_frontier_of_its_own() -> None:
    cost, gain = np.array([1.0, 2.0, 3.0]), np.array([9.0, 1.0, 0.5])
    assert sorted(frontier_by_size(cost, gain, np.array([1, 2, 2]))) == [0, 1]


def test_the_best_of_each_size_is_among_the_allowed() -> None:
    gain, ranks = np.array([1.0, 5.0, 3.0, 2.0]), np.array([1, 1, 1, 2])
    allowed = np.array([True, False, True, False])
    assert list(best_by_size(gain, ranks, allowed)) == [2]
