"""Turns: who runs when, which variant counts, and how contenders are compared."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from orchestrator.bench.process import ContenderFailed
from orchestrator.bench.rounds import (
    Outcome,
    compete,
    median_interval,
    ratio,
    ratio_of_rounds,
)


def _recorded(log: list[str], name: str, *values: float) -> Callable[[int], float]:
    def turn(index: int) -> float:
        log.append(f"{name}{index}")
        return values[min(index, len(values) - 1)]

    return turn


def _failing(message: str, from_round: int = 0) -> Callable[[int], float]:
    def turn(index: int) -> float:
        if index >= from_round:
            raise ContenderFailed(message)
        return 1.0

    return turn


def test_contenders_alternate_within_each_round() -> None:
    log: list[str] = []
    compete({"a": {"": _recorded(log, "a", 1)}, "b": {"": _recorded(log, "b", 1)}}, float, 2)
    assert log == ["a0", "b0", "a1", "b1", "a2", "b2"]


def test_the_fastest_variant_of_the_first_turn_is_measured_and_the_turn_is_not() -> None:
    log: list[str] = []
    slow, fast = _recorded(log, "slow", 5.0, 50.0), _recorded(log, "fast", 7.0, 1.0)
    outcome = compete({"a": {"slow": slow, "fast": fast}}, float, 2)["a"]
    assert outcome == Outcome("fast", (1.0, 1.0))
    assert log == ["slow0", "fast0", "fast1", "fast2"]


def test_a_variant_that_fails_leaves_the_others() -> None:
    outcome = compete({"a": {"bad": _failing("no"), "good": lambda _: 2.0}}, float, 1)["a"]
    assert outcome == Outcome("good", (2.0,))


@pytest.mark.parametrize("from_round", [0, 2])
def test_a_contender_that_fails_is_out_with_its_reason_and_the_others_go_on(
    from_round: int,
) -> None:
    outcomes = compete(
        {"bad": {"": _failing("it broke", from_round)}, "good": {"": lambda _: 2.0}}, float, 3
    )
    assert outcomes["bad"] == Outcome(why="it broke")
    assert outcomes["good"].samples == (2.0, 2.0, 2.0)


def test_the_ratio_is_the_median_of_the_ratios_within_rounds() -> None:
    # A slow round slows both: the ratio of medians would be 10 / 5, or worse.
    assert ratio_of_rounds([10.0, 1.0, 12.0], [5.0, 0.5, 4.0]) == 2.0


def test_without_samples_there_is_no_ratio_and_no_median() -> None:
    some = Outcome("x", (1.0, 2.0))
    none: Outcome[float] = Outcome(why="absent")
    assert ratio(some, none, float) is None
    assert ratio(none, some, float) is None
    assert ratio(some, some, float) == 1.0
    assert none.median_of(float) is None
    assert some.median_of(float) == 1.5


def test_the_interval_of_a_median_is_that_of_the_sign_test() -> None:
    # Of ten values with 95 %: the second to the ninth (a binomial table gives 2.1 % outside, and
    # 10.9 % outside the third to the eighth).
    assert median_interval([3, 10, 1, 7, 5, 2, 9, 4, 8, 6]) == (2, 9)
    assert median_interval(list(range(1, 16))) == (4, 12)
    assert median_interval([1, 2, 3, 4, 5, 6]) == (1, 6)


def test_a_few_values_tell_no_interval() -> None:
    assert median_interval([]) is None
    assert median_interval([1, 2, 3, 4, 5]) is None
