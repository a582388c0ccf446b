"""Which tokens may be sampled and how likely they are, against transformers' own processors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.generation import logits_process

from workers.engine.commands import Sampling
from workers.engine.sampling.filters import draw, probabilities

_VOCAB = 12


def _logits(rows: int, seed: int) -> Tensor:
    return torch.randn(rows, _VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def _normalised(logits: Tensor, sampling: Sampling) -> Tensor:
    weights = probabilities(logits, [sampling] * len(logits))
    return weights / weights.sum(dim=-1, keepdim=True)


def _reference(logits: Tensor, sampling: Sampling) -> Tensor:
    ids = torch.zeros(len(logits), 1, dtype=torch.int64)
    scores = logits_process.TemperatureLogitsWarper(sampling.temperature)(ids, logits.double())
    if sampling.top_k:
        scores = logits_process.TopKLogitsWarper(sampling.top_k)(ids, scores)
    if sampling.top_p < 1.0:
        scores = logits_process.TopPLogitsWarper(sampling.top_p)(ids, scores)
    if sampling.min_p:
        scores = logits_process.MinPLogitsWarper(sampling.min_p)(ids, scores)  # type: ignore[arg-type]
    return torch.softmax(scores, dim=-1)


@settings(deadline=None)
@given(
    st.builds(
        Sampling,
        max_tokens=st.just(1),
        temperature=st.floats(0.05, 2.0),
        top_p=st.one_of(st.just(1.0), st.floats(0.01, 0.999)),
        top_k=st.integers(0, _VOCAB + 2),
        min_p=st.one_of(st.just(0.0), st.floats(0.001, 1.0)),
    ),
    st.integers(0, 1000),
)
def test_the_distribution_is_that_of_transformers(sampling: Sampling, seed: int) -> None:
    logits = _logits(3, seed)
    assert torch.allclose(_normalised(logits, sampling), _reference(logits, sampling), atol=1e-9)


def test_top_p_is_the_same_whether_few_tokens_reach_the_mass_or_most_of_them() -> None:
    """Rows from one with all mass in one token to one that is nearly flat."""
    scale = torch.tensor([20.0, 3.0, 1.0, 0.1])[:, None]
    logits = torch.randn(4, 2000, generator=torch.Generator().manual_seed(2)) * scale
    sampling = Sampling(1, 1.0, top_p=0.9)
    result = _normalised(logits, sampling)
    assert torch.allclose(result, _reference(logits, sampling), atol=1e-9)
    assert (result > 0.0).sum(dim=-1).tolist()[3] > 1000
    alone = [_normalised(logits[row : row + 1], sampling)[0] for row in range(4)]
    assert torch.equal(result, torch.stack(alone))


def test_filters_of_one_row_leave_the_others_alone() -> None:
    logits = _logits(4, 1)
    samplings = [
        Sampling(1, 1.0),
        Sampling(1, 1.0, top_k=2),
        Sampling(1, 0.5, top_p=0.5),
        Sampling(1, 2.0, min_p=0.9, top_k=5),
    ]
    together = probabilities(logits, samplings)
    for row, sampling in enumerate(samplings):
        assert torch.equal(together[row], probabilities(logits[row : row + 1], [sampling])[0])


def test_equally_likely_tokens_are_kept_or_dropped_together() -> None:
    logits = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    for sampling in (Sampling(1, 1.0, top_k=1), Sampling(1, 1.0, top_p=0.01)):
        third = pytest.approx(1 / 3)
        assert _normalised(logits, sampling)[0].tolist() == [third, third, third, 0.0]


@pytest.mark.parametrize("temperature", [1e-45, 1e-3, 1e3])
def test_no_temperature_overflows(temperature: float) -> None:
    logits = torch.tensor([[-80.0, 3e4, 2.9e4, -torch.inf]])
    distribution = _normalised(logits, Sampling(1, temperature))[0]
    assert distribution.sum().item() == pytest.approx(1.0)
    assert distribution.argmax() == 1
    assert distribution[3] == 0.0


@given(
    st.lists(st.sampled_from([0.0, 1e-300, 0.1, 1 / 3, 1.0, 5.0]), min_size=1, max_size=9),
    st.one_of(st.floats(0.0, 1.0, exclude_max=True), st.just(1.0 - 2.0**-53)),
)
def test_a_draw_inverts_the_cumulative_weights_and_never_meets_a_weight_of_zero(
    weights: list[float], number: float
) -> None:
    if not any(weights):
        weights[0] = 1.0
    row = torch.tensor([weights], dtype=torch.float64)
    token = int(draw(row, [number])[0])
    cumulative = row.cumsum(-1)[0]
    assert weights[token] > 0.0
    assert cumulative[token] >= number * cumulative[-1]
    if token:
        assert cumulative[token - 1] <= number * cumulative[-1]


def test_a_draw_takes_each_row_with_its_own_number() -> None:
    weights = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.25, 0.75]], dtype=torch.float64)
    assert draw(weights, [0.5, 0.0]).tolist() == [1, 1]
    assert draw(weights, [0.49, 0.26]).tolist() == [0, 2]
