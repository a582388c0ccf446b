"""Figures from what a contender did: the same definitions for every engine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.bench.measures import (
    NothingMeasured,
    acceptance_length,
    acceptance_rates,
    decode_speed,
    first_token_ms,
    output_tokens_per_s,
    pooled,
    prefill_tokens_per_s,
)
from orchestrator.bench.messages import Speculation, Timeline


def _timeline(elapsed_s: list[float], tokens: list[list[int]]) -> Timeline:
    return Timeline(elapsed_s=elapsed_s, tokens=tokens, peak_bytes=0)


def test_prefill_ends_when_the_last_request_has_its_first_token() -> None:
    timeline = _timeline([0.5, 1.0, 2.0], [[1, 0], [0, 0], [0, 1]])
    assert prefill_tokens_per_s(timeline, 256) == 128.0
    assert first_token_ms(timeline) == 2000.0


def test_decode_counts_only_steps_in_which_the_whole_batch_decodes() -> None:
    tokens = [[1, 0], [1, 1], [1, 1], [1, 1], [0, 1], [0, 1]]
    timeline = _timeline([1.0, 3.0, 4.0, 5.0, 5.1, 5.2], tokens)
    speed = decode_speed(timeline)
    assert speed.tokens_per_s == 2.0
    assert speed.step_ms == 1000.0


def test_accepted_drafts_count_as_tokens_of_their_step() -> None:
    speed = decode_speed(_timeline([1.0, 2.0, 3.0], [[1], [4], [2]]))
    assert speed.tokens_per_s == 3.0
    assert speed.step_ms == 1000.0


@pytest.mark.parametrize("tokens", [[[1, 1]], [[1, 0], [1, 0], [0, 1]]])
def test_answers_too_short_to_decode_together_are_no_measurement(tokens: list[list[int]]) -> None:
    timeline = _timeline([1.0, 2.0, 3.0][: len(tokens)], tokens)
    with pytest.raises(NothingMeasured, match="too short"):
        decode_speed(timeline)


def test_a_request_without_any_token_is_no_measurement() -> None:
    with pytest.raises(NothingMeasured, match="got no token"):
        prefill_tokens_per_s(_timeline([1.0], [[1, 0]]), 2)


def test_throughput_counts_every_token_over_all_of_the_time() -> None:
    assert output_tokens_per_s(_timeline([1.0, 4.0], [[1, 0], [1, 2]])) == 1.0


def test_acceptance_length_is_one_plus_the_joint_acceptances() -> None:
    counts = Speculation(steps=10, drafted=[10, 8, 4], accepted=[8, 4, 1])
    assert acceptance_rates(counts) == [0.8, 0.5, 0.25]
    assert acceptance_length(counts) == pytest.approx(1 + 0.8 + 0.8 * 0.5 + 0.8 * 0.5 * 0.25)


def test_acceptance_length_without_drafts_is_one() -> None:
    assert acceptance_length(Speculation(steps=3, drafted=[], accepted=[])) == 1.0


@given(st.lists(st.integers(0, 20), min_size=1, max_size=7), st.integers(20, 40))
def test_acceptance_length_is_the_mean_of_tokens_per_step(kept: list[int], steps: int) -> None:
    """With every step drafting to the end, AL is (steps + accepted) / steps."""
    accepted = sorted(kept, reverse=True)
    counts = Speculation(steps=steps, drafted=[steps, *accepted[:-1]], accepted=accepted)
    assert acceptance_length(counts) == pytest.approx((steps + sum(accepted)) / steps)


def test_counts_of_runs_with_different_draft_lengths_add_up() -> None:
    first = Speculation(steps=2, drafted=[2], accepted=[1])
    second = Speculation(steps=3, drafted=[3, 2], accepted=[2, 0])
    assert pooled([first, None, second]) == Speculation(steps=5, drafted=[5, 2], accepted=[3, 0])
    assert pooled([None]) is None
