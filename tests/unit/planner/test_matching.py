"""Worker counts balance the rates, and integers are chosen as well as they can be."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from orchestrator.planner.matching import (
    Pairs,
    Pool,
    counts_for_demand,
    counts_for_devices,
    gpu_ratio,
    matched_throughput,
    smallest_fraction,
    unit_counts,
)
from workers.perf.errors import PerfError

_RATES = st.floats(0.01, 100.0)
_PREFILL = Pool(rate=2.0, ranks=1, slots=4.0, service_s=2.0, latency_s=0.5)
_DECODE = Pool(rate=5.0, ranks=4, slots=256.0, service_s=50.0)


@given(_RATES, _RATES)
def test_the_ratio_makes_both_pools_equally_quick(prefill: float, decode: float) -> None:
    ratio = gpu_ratio(prefill, decode)
    assert ratio * prefill == pytest.approx(decode)
    # Of 1 + ratio GPUs one decodes.
    assert matched_throughput(decode, ratio) * (1 + ratio) == pytest.approx(decode)


@given(st.floats(0.01, 100.0), st.sampled_from([0.001, 0.03, 0.2]))
def test_no_smaller_denominator_is_within_the_tolerance(value: float, tolerance: float) -> None:
    found = smallest_fraction(value, tolerance)
    assert abs(found / Fraction(value) - 1) <= tolerance * (1 + 1e-9)
    for denominator in range(1, found.denominator):
        nearest = round(value * denominator)
        error = min(
            abs((nearest + step) / (value * denominator) - 1)
            for step in (-1, 0, 1)
            if nearest + step > 0
        )
        assert error > tolerance * (1 - 1e-9)


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_a_ratio_that_is_none_is_refused(value: float) -> None:
    with pytest.raises(PerfError, match="positive and finite"):
        smallest_fraction(value)


@given(_RATES, _RATES)
def test_the_unit_matches_rates_within_the_tolerance(prefill: float, decode: float) -> None:
    assume(0.02 < prefill / decode < 50)
    n_p, n_d = unit_counts(prefill, decode)
    assert n_p * prefill == pytest.approx(n_d * decode, rel=0.03)


def test_demand_is_served_by_the_counts_that_the_balance_asks_for() -> None:
    match = counts_for_demand(20.0, _PREFILL, _DECODE)
    assert match is not None
    assert (match.prefill, match.decode) == (11, 5)


def test_no_fewer_workers_would_serve_the_demand() -> None:
    match = counts_for_demand(20.0, _PREFILL, _DECODE, ttft_s=0.8)
    assert match is not None
    assert match.ttft_s <= 0.8
    pairs = Pairs.of(_PREFILL, _DECODE)
    for n_p, n_d in ((match.prefill - 1, match.decode), (match.prefill, match.decode - 1)):
        waits = pairs.ttft_s(np.asarray(n_p), np.asarray(n_d), 20.0, 0.95)
        assert float(waits) > 0.8


def test_a_tighter_ttft_takes_more_prefill() -> None:
    loose = counts_for_demand(20.0, _PREFILL, _DECODE, ttft_s=5.0)
    tight = counts_for_demand(20.0, _PREFILL, _DECODE, ttft_s=0.55)
    assert loose is not None
    assert tight is not None
    assert tight.prefill > loose.prefill


def test_a_ttft_below_the_time_of_reading_has_no_counts() -> None:
    assert counts_for_demand(20.0, _PREFILL, _DECODE, ttft_s=0.4) is None


def test_a_demand_of_nothing_is_refused() -> None:
    with pytest.raises(PerfError, match="demand 0"):
        counts_for_demand(0.0, _PREFILL, _DECODE)


@given(
    devices=st.integers(2, 60),
    p_rate=_RATES,
    d_rate=_RATES,
    p_ranks=st.sampled_from([1, 2, 3]),
    d_ranks=st.sampled_from([1, 4]),
)
def test_few_devices_are_split_as_well_as_by_trying_everything(
    devices: int, p_rate: float, d_rate: float, p_ranks: int, d_ranks: int
) -> None:
    prefill, decode = Pool(p_rate, p_ranks, 1.0, 1.0), Pool(d_rate, d_ranks, 8.0, 1.0)
    match = counts_for_devices(devices, prefill, decode)
    best = max(
        (
            min(n_p * p_rate, n_d * d_rate)
            for n_p in range(1, devices // p_ranks + 1)
            for n_d in range(1, devices // d_ranks + 1)
            if n_p * p_ranks + n_d * d_ranks <= devices
        ),
        default=None,
    )
    assert (match is None) == (best is None)
    if match is not None:
        assert match.sustained_rps == pytest.approx(best)


def test_many_devices_lose_no_more_than_a_percent_to_rounding() -> None:
    match = counts_for_devices(10_000, _PREFILL, _DECODE)
    assert match is not None
    # Per GPU 2 and 1.25 requests a second: 1 / (1/2 + 1/1.25) at best.
    assert match.sustained_rps == pytest.approx(10_000 / (1 / 2 + 4 / 5), rel=0.01)


def test_what_bounds_a_match_is_named() -> None:
    slow_prefill = counts_for_devices(6, Pool(0.1, 1, 1, 10), Pool(50.0, 1, 64, 1))
    slow_decode = counts_for_devices(6, Pool(50.0, 1, 1, 0.02), Pool(0.1, 1, 4, 40))
    waiting = counts_for_devices(2, Pool(1.0, 1, 1, 1, 0, 1.0), Pool(50.0, 1, 64, 1), ttft_s=1.5)
    assert slow_prefill is not None
    assert slow_decode is not None
    assert waiting is not None
    assert (slow_prefill.bound, slow_decode.bound, waiting.bound) == ("prefill", "decode", "TTFT")
