"""The planner's bench judges what it measured and nothing else."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.bench.planner.run import Comparison, Findings, document, judge

_GOOD = Findings(
    points=150_000,
    search_s=0.2,
    plan_s=0.5,
    resolve_s=0.002,
    cold_start_s=1.2,
    comparisons=(Comparison("m", "h", 8, 99.5, 100.0, 1000),),
)


def test_good_figures_meet_every_goal() -> None:
    assert [target.met for target in judge(_GOOD)] == [True] * 7


def test_each_bad_figure_misses_its_own_goal() -> None:
    worse = (Comparison("m", "h", 8, 90.0, 100.0, 1000),)
    bad = [
        (replace(_GOOD, search_s=1.5), {"full search of at least 100,000 points"}),
        (replace(_GOOD, plan_s=3.0), {"whole plan in a warm process"}),
        (replace(_GOOD, resolve_s=0.006), {"re-solve of the rate match"}),
        (replace(_GOOD, comparisons=worse), {"shortfall against exhaustive search"}),
    ]
    for findings, names in bad:
        assert {one.goal.name for one in judge(findings) if one.met is False} >= names


def test_a_search_of_few_points_is_not_judged_as_a_full_one() -> None:
    targets = {one.goal.name: one for one in judge(replace(_GOOD, points=5000))}
    assert targets["full search of at least 100,000 points"].met is None


def test_the_document_ends_with_targets_and_machine() -> None:
    assert list(document(_GOOD, judge(_GOOD), {}, 1.0))[-2:] == ["targets", "machine"]
