"""Choosing tokens: greedy, filtered, seeded, and independent of the rest of the batch."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workers.engine.commands import Sampling
from workers.engine.native.sampler import choose, uniform

_VOCAB = 12


def _sampling(
    temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0, seed: int = 0
) -> Sampling:
    return Sampling(
        max_tokens=1, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed, logprobs=True
    )


def _draws(logits: torch.Tensor, sampling: Sampling, count: int) -> Counter[int]:
    rows = logits.expand(count, -1)
    chosen = choose(rows, [sampling] * count, list(range(count)))
    return Counter(choice.token_id for choice in chosen)


def test_temperature_zero_takes_the_most_likely_token_and_the_first_of_equals() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0, 1.0]])
    assert choose(logits, [_sampling(temperature=0.0)], [5])[0].token_id == 1


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1))
def test_uniform_numbers_are_in_range_and_depend_on_seed_and_index_only(
    seed: int, index: int
) -> None:
    value = uniform(seed, index)
    assert 0.0 <= value < 1.0
    assert value == uniform(seed, index)
    assert value != uniform(seed, index + 1)
    assert value != uniform((seed + 1) % 2**64, index)


def test_uniform_numbers_fill_the_unit_interval_evenly_over_indexes_and_over_seeds() -> None:
    for values in (
        [uniform(7, index) for index in range(20_000)],
        [uniform(seed, 3) for seed in range(20_000)],
    ):
        tenths = Counter(int(value * 10) for value in values)
        # Five standard deviations of a binomial count.
        assert all(abs(tenths[tenth] - 2000) < 5 * math.sqrt(1800) for tenth in range(10))


def test_sampled_frequencies_follow_the_softmax_at_the_given_temperature() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    expected = torch.softmax(logits / 0.7, dim=-1).tolist()
    count = 20_000
    drawn = _draws(logits, _sampling(temperature=0.7), count)
    for token_id, probability in enumerate(expected):
        deviation = math.sqrt(count * probability * (1 - probability))
        assert abs(drawn[token_id] - count * probability) < 5 * deviation


def test_top_k_keeps_the_k_most_likely_tokens() -> None:
    logits = torch.tensor([0.1, 0.4, 0.3, 0.2])
    assert set(_draws(logits, _sampling(top_k=2), 500)) == {1, 2}


def test_top_p_keeps_the_fewest_tokens_that_reach_the_mass_and_always_one() -> None:
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    assert set(_draws(logits, _sampling(top_p=0.7), 500)) == {0, 1}
    assert set(_draws(logits, _sampling(top_p=1e-6), 100)) == {0}


@given(st.integers(0, 2**63), st.integers(1, 5), st.data())
def test_a_token_does_not_depend_on_the_rest_of_the_batch(
    seed: int, rows: int, data: st.DataObject
) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    logits = torch.randn(rows, _VOCAB, generator=generator)
    samplings = [_sampling(seed=seed + row, top_k=5, top_p=0.9) for row in range(rows)]
    indexes = list(range(10, 10 + rows))
    together = choose(logits, samplings, indexes)
    alone = [
        choose(logits[row : row + 1], [samplings[row]], [indexes[row]])[0] for row in range(rows)
    ]
    assert [choice.token_id for choice in together] == [choice.token_id for choice in alone]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logprobs_are_those_of_the_model_whatever_the_temperature(temperature: float) -> None:
    logits = torch.tensor([[1.0, 2.0, 0.5]])
    choice = choose(logits, [_sampling(temperature=temperature)], [0])[0]
    expected = torch.log_softmax(logits, dim=-1)[0, choice.token_id].item()
    assert choice.logprob == pytest.approx(expected, abs=1e-6)
