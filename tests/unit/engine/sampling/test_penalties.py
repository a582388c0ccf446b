"""Penalties: repetition as in transformers, frequency and presence as OpenAI defines them."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

from workers.engine.commands import Sampling
from workers.engine.sampling.penalties import TokenCounts, penalise

_VOCAB = 9
tokens = st.lists(st.integers(0, _VOCAB - 1), max_size=12)


def _penalised(
    logits: torch.Tensor, sampling: Sampling, prompt: list[int], output: list[int]
) -> torch.Tensor:
    counts = TokenCounts(prompt, output, _VOCAB, logits.device)
    return penalise(logits[None], [sampling], [counts])[0]


def _logits(seed: int) -> torch.Tensor:
    return torch.randn(_VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


@given(tokens.filter(bool), tokens, st.floats(0.1, 3.0), st.integers(0, 99))
def test_repetition_counts_prompt_and_answer_as_transformers_does(
    prompt: list[int], output: list[int], penalty: float, seed: int
) -> None:
    logits = _logits(seed)
    history = torch.tensor([prompt + output])
    expected = RepetitionPenaltyLogitsProcessor(penalty)(history, logits[None].clone())[0]
    result = _penalised(logits, Sampling(1, repetition_penalty=penalty), prompt, output)
    assert torch.allclose(result, expected, atol=1e-6)


@given(tokens, tokens, st.floats(-2.0, 2.0), st.floats(-2.0, 2.0), st.integers(0, 99))
def test_frequency_counts_and_presence_marks_the_answer_only(
    prompt: list[int], output: list[int], frequency: float, presence: float, seed: int
) -> None:
    logits = _logits(seed)
    sampling = Sampling(1, frequency_penalty=frequency, presence_penalty=presence)
    expected = [
        logits[token].item() - frequency * output.count(token) - presence * (token in output)
        for token in range(_VOCAB)
    ]
    result = _penalised(logits, sampling, prompt, output)
    assert torch.allclose(result, torch.tensor(expected), atol=1e-5)


@given(tokens, tokens, tokens)
def test_counts_kept_up_to_date_are_those_made_anew(
    prompt: list[int], output: list[int], later: list[int]
) -> None:
    device = torch.device("cpu")
    counts = TokenCounts(prompt, output, _VOCAB, device)
    for token_id in later:
        counts.add(token_id)
    anew = TokenCounts(prompt, output + later, _VOCAB, device)
    assert torch.equal(counts.in_output, anew.in_output)
    assert torch.equal(counts.in_prompt, anew.in_prompt)
