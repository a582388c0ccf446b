"""Acceptance lengths and what they gain."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.perf.errors import PerfError
from workers.perf.speculation import (
    acceptance_length,
    acceptance_lengths,
    acceptance_rate,
    rollout_speedup_bound,
    speedup,
)


def test_acceptance_length_sums_the_products_of_conditional_rates() -> None:
    assert acceptance_length([0.8, 0.7, 0.6]) == pytest.approx(1 + 0.8 + 0.56 + 0.336)
    assert acceptance_length([]) == 1.0


@given(st.floats(0.0, 1.0), st.integers(0, 7))
def test_equal_rates_give_the_geometric_sum(rate: float, drafts: int) -> None:
    sums = acceptance_lengths(rate, np.array(float(drafts)))
    assert float(sums) == pytest.approx(acceptance_length([rate] * drafts))


@given(st.integers(1, 7), st.floats(0.0, 1.0))
def test_the_rate_gives_its_length_back(drafts: int, share: float) -> None:
    length = 1.0 + share * drafts
    rate = acceptance_rate(length, drafts)
    assert float(acceptance_lengths(rate, np.array(float(drafts)))) == pytest.approx(length)


@pytest.mark.parametrize("length", [0.9, 4.1])
def test_an_impossible_length_is_refused(length: float) -> None:
    with pytest.raises(PerfError, match="from 1 to 4"):
        acceptance_rate(length, 3)


def test_speedup_is_step_ratio_times_length() -> None:
    assert speedup(19.6, 2.44, 25.9) == pytest.approx(1.85, abs=0.005)


def test_a_step_gains_no_more_than_its_generation() -> None:
    assert rollout_speedup_bound(0.72, 1e9) == pytest.approx(1 / 0.28)
    assert rollout_speedup_bound(0.0, 5.0) == 1.0
