"""The bench of hand-offs judges the worst row that a goal is about."""

from __future__ import annotations

import pytest

from orchestrator.bench.handoff.bandwidth import Moved
from orchestrator.bench.handoff.migration import Paused
from orchestrator.bench.handoff.overlap import Hidden
from orchestrator.bench.handoff.run import Findings, judge
from orchestrator.bench.handoff.shapes import PAIRS, Pair


def _moved(pair: str, tokens: int, ratio: float) -> Moved:
    return Moved(pair, tokens, 1, 1, 1.0, 1.0, 1.0, ratio)


def _hidden(chunks: int, share: float) -> Hidden:
    return Hidden(chunks, 1, 1.0, 1.0, 1.0, 1, share)


def test_the_worst_row_of_those_that_count_is_the_value() -> None:
    findings = Findings(
        [
            _moved("tp1 -> tp1", 1024, 0.1),  # too short to count
            _moved("tp1 -> tp1", 8192, 0.95),
            _moved("tp2 -> tp2", 32768, 0.85),
            _moved("tp2 -> kvp2", 8192, 0.4),
            _moved("tp1 -> kvp2", 8192, 0.9),
        ],
        [_hidden(1, 0.0), _hidden(4, 0.9), _hidden(8, 0.95)],
        [Paused(512, 10.0, 15.0, 20.0)],
    )
    assert [(target.value, target.met) for target in judge(findings, quick=False)] == [
        (0.85, True),
        (0.4, False),
        (0.9, True),
        (15.0, None),
    ]


def test_a_quick_run_judges_nothing() -> None:
    findings = Findings([_moved("tp1 -> tp1", 1024, 0.9)], [_hidden(2, 0.5)], [])
    assert [target.met for target in judge(findings, quick=True)] == [None, None, None]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_both_layouts_of_a_pair_can_hold_the_model(pair: Pair) -> None:
    source, target = pair.layouts
    assert source.geometry == target.geometry
