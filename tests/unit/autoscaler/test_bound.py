"""The bound of the report: what a jump that nobody announces costs any policy."""

from __future__ import annotations

import pytest

from orchestrator.autoscaler.comparison.bound import Bound, Pool
from orchestrator.autoscaler.comparison.traffic import Jumps

_STEP = Jumps(low_rps=2.0, high_rps=14.0, at_s=(1200.0,), each_s=600.0, seconds=3600.0)


def bound(cold_start_s: float = 30.0, jumps: Jumps = _STEP) -> Bound:
    """A prefill worker takes 3.5 requests a second, a decode worker 7."""
    return Bound(jumps, 14_400, Pool(3.5, 1), Pool(7.0, 1), cold_start_s, 3.0)


def test_what_comes_beyond_what_is_ready_within_a_cold_start_is_missed() -> None:
    # 7 a second are ready: (14 - 7) x 30 come too much, 7 x 3 of them can wait.
    assert bound().attainment(2, 1) == pytest.approx(1.0 - 189.0 / 14_400.0)
    assert bound().attainment(4, 1) == bound().attainment(2, 1), "the other pool is the limit"
    assert bound().attainment(4, 2) == 1.0


def test_workers_of_the_high_rate_are_paid_for_while_it_lasts() -> None:
    assert bound().gpu_hours(2, 1) == pytest.approx(3.0 + 3.0 / 6.0)
    assert bound().gpu_hours(4, 2) == pytest.approx(6.0)


def test_more_gpu_hours_attain_more_and_both_sides_agree() -> None:
    one = bound(180.0)
    assert one.best_attainment(1.0) == 0.0
    assert one.best_attainment(3.5) < one.best_attainment(5.5) <= 1.0
    cost = one.least_gpu_hours(0.99)
    assert one.best_attainment(cost) >= 0.99
    assert cost > bound(30.0).least_gpu_hours(0.985), "a longer cold start costs more"


def test_nothing_is_started_for_a_jump_that_is_over_before_it_would_serve() -> None:
    bursts = Jumps(3.0, 12.0, tuple(600.0 * n for n in range(6)), 60.0, 3600.0)
    assert bound(180.0, bursts).gpu_hours(2, 1) == pytest.approx(3.0)
    assert bound(30.0, bursts).gpu_hours(2, 1) == pytest.approx(3.0 + 3.0 * 0.1)
