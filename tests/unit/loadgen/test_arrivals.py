"""Arrival processes: their rates, their spread, and that a seed fixes them."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen import arrivals

_MANY = 20_000


def first(times: Iterator[float], count: int = _MANY) -> list[float]:
    return list(itertools.islice(times, count))


def within(times: Iterator[float], seconds: float) -> list[float]:
    return list(itertools.takewhile(lambda at: at < seconds, times))


def gaps(times: list[float]) -> list[float]:
    return [after - before for before, after in itertools.pairwise([0.0, *times])]


def variation(values: list[float]) -> float:
    return statistics.pstdev(values) / statistics.fmean(values)


MAKERS: dict[str, Callable[[float, int], Iterator[float]]] = {
    "constant": lambda rate, seed: arrivals.constant(rate),
    "poisson": arrivals.poisson,
    "gamma": lambda rate, seed: arrivals.gamma(rate, 0.3, seed),
    "diurnal": lambda rate, seed: arrivals.varying(
        arrivals.diurnal(rate, 0.5, 20.0), 1.5 * rate, seed
    ),
}


@given(st.sampled_from(sorted(MAKERS)), st.floats(0.1, 1000.0), st.integers(0, 99))
def test_moments_grow_and_a_seed_fixes_them(name: str, rate: float, seed: int) -> None:
    times = first(MAKERS[name](rate, seed), 50)
    assert all(gap >= 0.0 for gap in gaps(times))
    assert times == first(MAKERS[name](rate, seed), 50)


@pytest.mark.parametrize("name", ["constant", "poisson", "gamma"])
def test_the_mean_rate_is_as_asked(name: str) -> None:
    assert _MANY / first(MAKERS[name](40.0, 5))[-1] == pytest.approx(40.0, rel=0.05)


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_burstiness_sets_the_variation_of_gaps(burstiness: float) -> None:
    spread = variation(gaps(first(arrivals.gamma(10.0, burstiness, 1))))
    assert spread == pytest.approx(burstiness**-0.5, rel=0.05)


def test_gaps_of_poisson_vary_as_much_as_they_last_and_constant_ones_not_at_all() -> None:
    assert variation(gaps(first(arrivals.poisson(10.0, 1)))) == pytest.approx(1.0, rel=0.05)
    assert variation(gaps(first(arrivals.constant(10.0)))) == pytest.approx(0.0, abs=1e-6)


def test_a_ramp_rises_in_a_straight_line_and_stays() -> None:
    times = within(arrivals.varying(arrivals.ramp(10.0, 110.0, 100.0), 110.0, 2), 200.0)
    counts = [sum(low <= at < low + 50.0 for at in times) for low in (0.0, 50.0, 100.0, 150.0)]
    assert counts == [pytest.approx(50 * rate, rel=0.1) for rate in (35.0, 85.0, 110.0, 110.0)]


def test_a_step_changes_the_rate_at_its_moment() -> None:
    times = within(arrivals.varying(arrivals.step(20.0, 80.0, 100.0), 80.0, 2), 200.0)
    before = sum(at < 100.0 for at in times)
    assert before == pytest.approx(2000, rel=0.1)
    assert len(times) - before == pytest.approx(8000, rel=0.1)


def test_a_day_begins_at_night_and_has_its_mean() -> None:
    rate = arrivals.diurnal(50.0, 0.8, 100.0)
    assert rate(0.0) == pytest.approx(10.0)
    assert rate(50.0) == pytest.approx(90.0)
    times = within(arrivals.varying(rate, 90.0, 2), 400.0)
    assert len(times) == pytest.approx(400 * 50, rel=0.05)
