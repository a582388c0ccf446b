"""Lengths of requests: fixed, sampled, and read from the public trace formats."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.planner.workload import fixed, sampled
from workers.perf.errors import PerfError

_LENGTHS = st.lists(st.tuples(st.integers(1, 10**5), st.integers(1, 10**4)), min_size=1)


@given(_LENGTHS)
def test_bins_keep_the_mean_prompt(pairs: list[tuple[int, int]]) -> None:
    work = sampled([p for p, _ in pairs], [a for _, a in pairs], percentile=0.95)
    assert work.mean_isl == pytest.approx(sum(p for p, _ in pairs) / len(pairs))
    assert float(work.weights.sum()) == pytest.approx(1.0)


def test_equal_requests_are_a_fixed_workload() -> None:
    one, other = sampled([100] * 5, [10] * 5, percentile=0.9), fixed(100, 10)
    assert (one.mean_isl, one.mean_osl, one.context, one.held, one.isl_percentile, one.osl_scv) == (
        other.mean_isl,
        other.mean_osl,
        other.context,
        other.held,
        other.isl_percentile,
        other.osl_scv,
    )


def test_contexts_are_weighted_by_how_long_answers_stay() -> None:
    work = sampled([1000, 1000], [10, 990], percentile=0.5)
    assert work.context == pytest.approx(0.01 * 1005 + 0.99 * 1495)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [((0, 5, 0.0), "isl 0"), ((5, 0, 0.0), "osl 0"), ((5, 5, 1.0), "prefix_hit 1")],
)
def test_impossible_lengths_are_refused(arguments: tuple[float, float, float], says: str) -> None:
    with pytest.raises(PerfError, match=says):
        fixed(*arguments)
