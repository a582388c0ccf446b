"""Forecasts: each kind of series is told by the forecaster that is made for it."""

from __future__ import annotations

import itertools
import math

import pytest

from orchestrator.autoscaler.forecast import Chooser
from orchestrator.autoscaler.lengths import Lengths
from orchestrator.autoscaler.observation import Traffic
from orchestrator.autoscaler.rates import ArrivalRate
from router.traffic import length_bin


def test_a_constant_series_goes_on_as_it_is() -> None:
    chooser = Chooser(5.0, 30.0, 45.0)
    for _ in range(100):
        chooser.observe(4.0)
    told = chooser.ahead(30.0, 5.0)
    assert told.method == "constant"
    assert told.value == pytest.approx(4.0)
    assert told.spread == pytest.approx(0.0)


def test_a_ramp_is_told_by_its_trend() -> None:
    chooser = Chooser(5.0, 60.0, 45.0)
    for step in range(120):
        chooser.observe(1.0 + 0.1 * step)
    told = chooser.ahead(60.0, 5.0)
    assert told.method == "trend"
    assert told.value == pytest.approx(1.0 + 0.1 * 131, rel=0.1)


def test_what_repeats_is_told_by_the_season_before() -> None:
    chooser = Chooser(5.0, 60.0, 20.0, season_s=600.0)

    def series(step: int) -> float:
        return 5.0 + 4.0 * math.sin(2.0 * math.pi * step / 120.0)

    for step in range(480):
        chooser.observe(series(step))
    told = chooser.ahead(60.0, 5.0)
    assert told.method == "seasonal"
    assert told.value == pytest.approx(series(479 + 12), abs=0.8)


def test_a_jump_is_believed_at_once_and_noise_is_not() -> None:
    rate = ArrivalRate(5.0, 30.0, 45.0, None)
    for step in range(60):
        rate.observe(10 + (step % 3 - 1) * 3)
    assert rate.now().level == pytest.approx(2.0, rel=0.1)
    rate.observe(70)
    found = rate.now()
    assert found.level == pytest.approx(14.0)
    assert found.doubt > 0.5


def _bursts(rate: ArrivalRate, gaps: list[int]) -> list[float]:
    """A burst of a minute after each gap of so many periods; what was expected at each period."""
    expected = []
    for gap in gaps:
        for step in range(gap + 12):
            rate.observe(15 if step < gap else 60)
            expected.append(rate.now().recurring)
    return expected


def test_jumps_at_equal_distances_are_expected_a_lead_time_before_they_come() -> None:
    expected = _bursts(ArrivalRate(5.0, 35.0, 45.0, None), [60, 108, 108, 108])
    assert not any(expected[:240]), "two jumps are needed to know a distance"
    for jump in (300, 420):
        before = expected[jump - 20 : jump]
        assert before[0] == 0.0
        assert before[-1] == pytest.approx(12.0, rel=0.1)
        assert before[-7] > 0.0, "workers that are started then serve in time"
    assert expected[310] == 0.0, "it has come"


def test_a_jump_that_does_not_come_back_is_expected_once() -> None:
    rate = ArrivalRate(5.0, 35.0, 45.0, None)
    expected = _bursts(rate, [60, 108, 300, 77])
    wrong = [value > 0.0 for value in expected]
    assert sum(after and not before for before, after in itertools.pairwise(wrong)) == 1
    assert sum(wrong) * 5.0 < 120.0


def lengths_of(requests: int, isl: int, osl: int, **fields: float) -> Traffic:
    return Traffic(
        arrived=requests,
        prompt_tokens=float(requests * isl),
        prompt_bins={length_bin(isl): requests},
        finished=requests,
        answer_tokens=float(requests * osl),
        answer_squares=float(requests * osl**2),
        ended_prompt_tokens=float(requests * isl),
        **fields,  # type: ignore[arg-type]
    )


def test_means_of_lengths_are_exact_though_bins_are_coarse() -> None:
    lengths = Lengths(60.0, 1.0, 1.0)
    lengths.observe(lengths_of(10, 4000, 300), 5.0)
    workload = lengths.workload(0.99)
    assert workload.mean_isl == pytest.approx(4000.0)
    assert workload.mean_osl == pytest.approx(300.0)


def test_longer_answers_are_noticed_while_they_still_run() -> None:
    lengths = Lengths(60.0, 1.0, 1.0)
    lengths.observe(lengths_of(50, 1000, 100, running=50, running_tokens=50 * 50), 5.0)
    assert lengths.osl_tokens == pytest.approx(100.0)
    lengths.observe(lengths_of(50, 1000, 100, running=100, running_tokens=100 * 300), 5.0)
    assert lengths.osl_tokens == pytest.approx(600.0)
