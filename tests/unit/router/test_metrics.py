"""The text that Prometheus reads."""

from __future__ import annotations

from router.metrics import Counter, Histogram, gauge_lines


def test_counters_count_by_label_and_escape_it() -> None:
    counter = Counter("c_total", "Things.", "why")
    counter.add(2, 'a "b"\n')
    counter.add(1.0, "z")
    counter.add(5_000_000, "z")
    assert list(counter.lines()) == [
        "# HELP c_total Things.",
        "# TYPE c_total counter",
        'c_total{why="a \\"b\\"\\n"} 2',
        'c_total{why="z"} 5000001',
    ]
    assert list(Counter("n_total", "None yet.").lines())[-1] == "n_total 0"


def test_histograms_are_cumulative_and_end_with_everything() -> None:
    histogram = Histogram("h_seconds", "Times.", (0.1, 1.0))
    for value_s in (0.05, 0.1, 0.5, 7.0):
        histogram.observe(value_s)
    assert list(histogram.lines())[2:] == [
        'h_seconds_bucket{le="0.1"} 2',
        'h_seconds_bucket{le="1"} 3',
        'h_seconds_bucket{le="+Inf"} 4',
        "h_seconds_sum 7.65",
        "h_seconds_count 4",
    ]


def test_gauges_have_labels_or_none() -> None:
    assert list(gauge_lines("g", "Now.", {(): 2.5}))[-1] == "g 2.5"
    labelled = gauge_lines("g", "Now.", {(("a", "x"), ("b", "y")): 1})
    assert list(labelled)[-1] == 'g{a="x",b="y"} 1'
