"""Virtual time goes on in order, however it is cut into spans."""

from __future__ import annotations

import heapq

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.simulator.agenda import Agenda

_TIMES = st.lists(st.floats(0.0, 20.0), max_size=40)


def _in_order(times: list[float], delays: list[float]) -> list[tuple[float, int]]:
    """What a heap of everything does: (when, which), with the entries that entries make."""
    heap = [(time_s, number) for number, time_s in enumerate(times)]
    heapq.heapify(heap)
    left, number, seen = list(delays), len(times), []
    while heap:
        now_s, one = heapq.heappop(heap)
        seen.append((now_s, one))
        if left:
            heapq.heappush(heap, (now_s + left.pop(), number))
            number += 1
    return seen


@given(_TIMES, _TIMES, st.sampled_from([0.01, 0.5, 3.0, 100.0]))
def test_entries_come_by_time_and_equal_ones_as_they_were_entered(
    times: list[float], delays: list[float], span_s: float
) -> None:
    agenda, left, seen = Agenda(span_s), list(delays), []
    number = len(times)

    def happen(which: int) -> None:
        nonlocal number
        seen.append((agenda.now_s, which))
        if left:
            agenda.at(agenda.now_s + left.pop(), happen, number)
            number += 1

    for which, time_s in enumerate(times):
        agenda.at(time_s, happen, which)
    while agenda.advance():
        pass
    assert seen == _in_order(times, delays)


def test_nothing_happens_that_is_not_due_yet() -> None:
    agenda = Agenda(1.0)
    seen: list[int] = []
    agenda.at(5.0, seen.append, 5)
    assert not agenda.advance_before(5.0)
    # The clock may stand before the span that is looked at: what comes earlier still goes first.
    agenda.at(2.0, seen.append, 2)
    assert agenda.next_s == 2.0
    assert agenda.advance_before(5.0)
    assert (agenda.now_s, seen) == (2.0, [2])
    assert agenda.advance()
    assert not agenda.advance()
