"""The draft length follows what acceptance and step times say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.engine.native.draft_length import DraftLength


def _run(lengths: DraftLength, batch: int, acceptance: float, cost: list[float]) -> int:
    """Let it serve a world where position i is accepted at this rate and k drafts cost cost[k]."""
    rows = 100
    chosen = 0
    for _ in range(400):
        chosen = lengths.choose(batch)
        drafted, accepted, alive = [], [], float(rows)
        for _position in range(chosen):
            drafted.append(round(alive))
            alive *= acceptance
            accepted.append(round(alive))
        lengths.observe(batch, chosen, cost[chosen], drafted, accepted)
    settled = [lengths.choose(batch) for _ in range(20)]
    return max(set(settled), key=settled.count)


def test_cheap_drafts_that_are_accepted_make_long_drafts() -> None:
    cost = [1.0 + 0.05 * k for k in range(8)]
    assert _run(DraftLength(7), 1, 0.9, cost) >= 5


def test_drafts_that_are_never_accepted_are_given_up() -> None:
    cost = [1.0 + 0.3 * k for k in range(8)]
    assert _run(DraftLength(7), 1, 0.0, cost) == 0


def test_the_best_length_falls_as_the_batch_grows() -> None:
    lengths = DraftLength(7)
    small = _run(lengths, 1, 0.7, [1.0 + 0.08 * k for k in range(8)])
    large = _run(lengths, 64, 0.7, [1.0 + 0.9 * k for k in range(8)])
    assert large < small


@given(st.integers(0, 7), st.integers(1, 64))
def test_a_forced_length_is_always_given(forced: int, batch: int) -> None:
    assert DraftLength(7, forced=forced).choose(batch) == forced


def test_expected_tokens_are_the_acceptance_length_of_speed_bench() -> None:
    lengths = DraftLength(2)
    for _ in range(200):
        lengths.observe(1, 2, 1.0, [100, 80], [80, 40])
    assert lengths.expected_tokens(2) == pytest.approx(1 + 0.8 + 0.8 * 0.5, abs=1e-6)
    assert lengths.expected_tokens(0) == 1.0
