"""Rows of targets: form, judgement, and that none is ever called reached without grounds."""

from __future__ import annotations

import pytest

from orchestrator.bench.targets import Goal, Target, better_peer, judged, rows

_TWICE = Goal("decode over a peer", 2.0, "x")
_LITTLE = Goal("time outside", 15.0, "%", "<")


def test_a_row_has_the_form_that_every_bench_prints() -> None:
    assert rows([judged(_TWICE, 2.5), judged(_LITTLE, 15.0), judged(_TWICE, None, "no peer")]) == [
        {"name": "decode over a peer", "value": 2.5, "unit": "x", "goal": ">= 2", "met": True},
        {"name": "time outside", "value": 15.0, "unit": "%", "goal": "< 15", "met": False},
        {
            "name": "decode over a peer",
            "value": None,
            "unit": "x",
            "goal": ">= 2",
            "met": None,
            "why": "no peer",
        },
    ]


@pytest.mark.parametrize(("value", "met"), [(2.0, True), (1.99, False)])
def test_a_bound_belongs_to_the_goal_when_it_is_at_least(value: float, met: bool) -> None:
    assert judged(_TWICE, value).met is met


def test_a_doubt_keeps_a_goal_from_being_called_reached_but_not_from_being_missed() -> None:
    assert judged(_TWICE, 3.0, "a peer is missing") == Target(
        _TWICE, 3.0, None, "a peer is missing"
    )
    assert judged(_TWICE, 1.0, "a peer is missing") == Target(
        _TWICE, 1.0, False, "a peer is missing"
    )


def test_an_unfit_value_is_shown_and_not_judged() -> None:
    for value in (1.0, 3.0):
        assert judged(_TWICE, value, unfit="too short") == Target(_TWICE, value, None, "too short")


def test_a_row_without_a_value_always_says_why() -> None:
    assert judged(_TWICE, None, None).why == "not measured"
    assert judged(_TWICE, None, "a", None, "b", "a", unfit="too short").why == "a; b"


def test_the_better_peer_is_the_one_that_we_beat_by_less() -> None:
    assert better_peer({"a": 3.0, "b": 1.5}, {}) == (1.5, None)
    assert better_peer({"a": 3.0, "b": None}, {"b": "missing"}) == (3.0, "b: missing")
    assert better_peer({"a": None}, {}) == (None, "a: not measured")
