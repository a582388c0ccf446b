"""Which steps are taken for hung ones, on virtual time."""

from __future__ import annotations

import pytest

from workers.engine.watchdog import StepWatch


@pytest.fixture
def watch() -> StepWatch:
    """One whose engine has warmed up."""
    return StepWatch(limit_s=60.0, worked=100)


def test_a_step_that_takes_longer_than_the_limit_is_hung(watch: StepWatch) -> None:
    watch.begin(1000.0)
    assert not watch.overdue(1060.0)
    assert "61 s; step_limit_s allows 60 s" in watch.overdue(1061.0)


def test_an_engine_that_waits_for_work_may_do_so_for_ever(watch: StepWatch) -> None:
    watch.begin(0.0)
    watch.rest()
    assert not watch.overdue(1e9)
    watch.begin(1e9)
    assert not watch.overdue(1e9 + 59.0)
    assert watch.overdue(1e9 + 61.0)


def test_each_step_has_the_limit_for_itself(watch: StepWatch) -> None:
    for step in range(100):
        watch.begin(50.0 * step)
        assert not watch.overdue(50.0 * step + 50.0)


def test_the_first_steps_may_compile_kernels() -> None:
    watch = StepWatch(limit_s=60.0)
    watch.begin(0.0)
    assert not watch.overdue(599.0)
    assert watch.overdue(601.0)
    watch.worked = 8
    assert watch.overdue(61.0)
