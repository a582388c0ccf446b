"""Tokens wait only when the router is more than half busy, and never longer than promised."""

from __future__ import annotations

import pytest

from router.relay.pacing import LONGEST_HOLD_S, SAMPLE_S, Pacer, hold_for


@pytest.mark.parametrize(("load", "hold_ms"), [(0.0, 0), (0.5, 0), (0.6, 8), (0.7, 16), (1.3, 16)])
def test_the_wait_grows_from_half_load_on(load: float, hold_ms: float) -> None:
    assert hold_for(load) * 1e3 == pytest.approx(hold_ms)
    assert hold_for(load) <= LONGEST_HOLD_S < 0.025


def run(busy: float, late_s: float, seconds: float) -> Pacer:
    pacer, now_s, cpu_s = Pacer(0.0, 0.0), 0.0, 0.0
    while now_s < seconds:
        now_s += SAMPLE_S + late_s
        cpu_s += busy * (SAMPLE_S + late_s)
        pacer.sample(now_s, cpu_s, late_s)
    return pacer


def test_a_busy_router_holds_within_a_quarter_of_a_second_and_an_idle_one_never() -> None:
    assert run(busy=0.45, late_s=0.0, seconds=5.0).hold_s == 0.0
    assert run(busy=1.0, late_s=0.0, seconds=0.25).hold_s > 0.01
    assert run(busy=1.0, late_s=0.0, seconds=2.0).hold_s == pytest.approx(LONGEST_HOLD_S)


def test_a_router_that_gets_no_processor_is_loaded_too() -> None:
    assert run(busy=0.3, late_s=0.02, seconds=2.0).hold_s > 0.95 * LONGEST_HOLD_S


def test_the_first_sample_after_a_pause_counts_alone() -> None:
    pacer = Pacer(0.0, 0.0)
    for n in range(1, 50):
        pacer.sample(n * SAMPLE_S, n * SAMPLE_S, 0.0)
    assert pacer.hold_s > 0.0
    pacer.sample(60.0, 49 * SAMPLE_S + 0.01, 0.0)
    assert pacer.hold_s == 0.0
