"""The random numbers behind tokens: even, and a function of seed and output index alone."""

from __future__ import annotations

import math
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from workers.engine.sampling.draws import uniform


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1))
def test_uniform_numbers_are_in_range_and_depend_on_seed_and_index_only(
    seed: int, index: int
) -> None:
    value = uniform(seed, index)
    assert 0.0 <= value < 1.0
    assert value == uniform(seed, index)
    assert value != uniform(seed, index + 1)
    assert value != uniform((seed + 1) % 2**64, index)


def test_uniform_numbers_fill_the_unit_interval_evenly_over_indexes_and_over_seeds() -> None:
    for values in (
        [uniform(7, index) for index in range(20_000)],
        [uniform(seed, 3) for seed in range(20_000)],
    ):
        tenths = Counter(int(value * 10) for value in values)
        # Five standard deviations of a binomial count.
        assert all(abs(tenths[tenth] - 2000) < 5 * math.sqrt(1800) for tenth in range(10))
