"""Routers that feed one worker get parts of what is free, and none of them is left with nothing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from workers.engine.events import Credits
from workers.shares import grant


def test_one_router_gets_everything() -> None:
    part = grant(Credits(5, 100, 200, 8), 1)
    assert (part.request_slots, part.free_tokens, part.total_tokens, part.total_slots) == (
        5,
        100,
        200,
        8,
    )


@given(slots=st.integers(0, 50), tokens=st.integers(0, 10**6), routers=st.integers(1, 9))
def test_parts_overfill_a_worker_by_less_than_one_request_each(
    slots: int, tokens: int, routers: int
) -> None:
    part = grant(Credits(slots, tokens, tokens, slots), routers)
    assert slots <= part.request_slots * routers < slots + routers
    assert tokens <= part.free_tokens * routers < tokens + routers
    assert part.all_free_tokens == tokens


def test_a_draining_worker_grants_nothing() -> None:
    part = grant(Credits(5, 100, 200, 8, draining=True), 2)
    assert (part.request_slots, part.free_tokens, part.draining) == (0, 0, True)
