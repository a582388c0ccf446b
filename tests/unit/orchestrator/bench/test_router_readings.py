"""Quantiles from two readings of a histogram."""

from __future__ import annotations

import pytest

from orchestrator.bench.router.readings import quantile_ms
from router.metrics import Histogram

_INF = float("inf")


def test_a_quantile_is_of_what_came_between_the_readings() -> None:
    before = {0.001: 100.0, 0.01: 100.0, _INF: 100.0}
    after = {0.001: 100.0, 0.01: 110.0, _INF: 110.0}
    assert quantile_ms(before, after, 0.5) == pytest.approx(5.5)
    assert quantile_ms({}, before, 1.0) == pytest.approx(1.0)
    assert quantile_ms(before, before, 0.5) is None
    assert quantile_ms({}, {}, 0.5) is None


def test_buckets_of_a_histogram_give_quantiles_within_a_bucket() -> None:
    histogram = Histogram("h", "text")
    for millis in range(1, 101):
        histogram.observe(millis / 1e3)
    buckets = {}
    for line in histogram.lines():
        name, mark, rest = line.partition('_bucket{le="')
        if mark:
            bound, _, count = rest.partition('"} ')
            buckets[float(bound)] = float(count)
    assert name == "h_count 100"
    for share in (0.5, 0.95, 0.99):
        found = quantile_ms({}, buckets, share)
        assert found is not None
        assert share * 100 / 1.5 <= found <= share * 100 * 1.5
