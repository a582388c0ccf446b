"""The preStop hooks of pods wait as long as they must and no longer, on a clock of the test."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from orchestrator.runtime.node_drain import wait_empty
from orchestrator.runtime.router_idle import QUIET_S, wait_idle


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def _until(clock: Clock, busy: Iterable[tuple[float, float]]) -> Callable[[], int]:
    """1 while the time lies in one of the spans, else 0."""
    spans = list(busy)
    return lambda: int(any(start <= clock() < end for start, end in spans))


def test_a_router_that_works_is_waited_for() -> None:
    clock = Clock()
    assert wait_idle(_until(clock, [(0, 60)]), 600, clock=clock, sleep=clock.sleep)
    assert 60 + QUIET_S <= clock() < 62 + QUIET_S


def test_a_late_request_starts_the_quiet_time_again() -> None:
    clock = Clock()
    busy = [(0, 10), (13, 20)]  # one more arrives before the endpoints have caught up
    assert wait_idle(_until(clock, busy), 600, clock=clock, sleep=clock.sleep)
    assert clock() >= 20 + QUIET_S


def test_a_router_that_never_becomes_idle_is_given_up_in_time() -> None:
    clock = Clock()
    assert not wait_idle(_until(clock, [(0, 1e9)]), 30, clock=clock, sleep=clock.sleep)
    assert 30 <= clock() <= 31


def test_a_node_is_left_when_its_replicas_are_gone() -> None:
    clock = Clock()
    assert wait_empty(_until(clock, [(0, 12)]), 100, clock=clock, sleep=clock.sleep)
    assert 12 <= clock() <= 13
    assert not wait_empty(lambda: 1, 100, clock=clock, sleep=clock.sleep)
