"""Speculation keeps the target's distribution: a chi-square test, and a check that it has power.

Every answer is one sample of its first three tokens, made with windows of three drafts that come
from another distribution than the target's. All seeds are fixed, so a result never varies.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from workers.engine.commands import Sampling
from workers.engine.sampling.draws import uniform
from workers.engine.sampling.filters import probabilities
from workers.engine.sampling.logprobs import Chosen
from workers.engine.sampling.state import SamplingState
from workers.engine.sampling.verify import choose_windows

_VOCAB = 4
_TOKENS = 3
_WINDOW = 4
_ANSWERS = 20_000
_PROMPT = (0, 0)

Rule = Callable[[Tensor, Sequence[Sequence[int]], Sequence[SamplingState]], list[list[Chosen]]]


def _table(seed: int) -> Tensor:
    """Logits [last but one, last, vocab] of the next token."""
    shape = (_VOCAB, _VOCAB, _VOCAB)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 1.2


_TARGET = _table(1)
_DRAFTER = torch.softmax(_table(2), dim=-1)


def _drafted(last: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Drafts [rows, 3] of the drafter, and the contexts [rows, 4, 2] of a window with them.

    `last` [rows, 2] are the last two tokens of each row. The random numbers are none that the
    target uses.
    """
    contexts = [last]
    for _ in range(_WINDOW - 1):
        older, newer = contexts[-1].T
        token = torch.multinomial(_DRAFTER[older, newer], 1, generator=generator)
        contexts.append(torch.cat([newer[:, None], token], dim=1))
    window = torch.stack(contexts, dim=1)
    return window[:, 1:, 1], window


def _counts(rule: Rule, sampling: Callable[[int], Sampling]) -> Counter[tuple[int, ...]]:
    """How often each answer came; all answers go through their steps as one batch."""
    generator = torch.Generator().manual_seed(3)
    states = [SamplingState(sampling(seed), _PROMPT) for seed in range(_ANSWERS)]
    going = states
    while going:
        last = torch.tensor([[*_PROMPT, *state.output_token_ids][-2:] for state in going])
        drafts, contexts = _drafted(last, generator)
        rule(_TARGET[contexts[..., 0], contexts[..., 1]], drafts.tolist(), going)
        going = [state for state in going if state.ended is None]
    return Counter(tuple(state.output_token_ids[:_TOKENS]) for state in states)


def _excess(counts: Counter[tuple[int, ...]], sampling: Sampling) -> float:
    """Chi-square against the exact distribution, in standard deviations above its mean.

    Infinite when an answer came that the target cannot give.
    """
    chi_square, cells = 0.0, 0
    for answer in itertools.product(range(_VOCAB), repeat=_TOKENS):
        probability = 1.0
        history = list(_PROMPT)
        for token in answer:
            weights = probabilities(_TARGET[history[-2], history[-1]][None], [sampling])[0]
            probability *= float(weights[token] / weights.sum())
            history.append(token)
        if probability == 0.0:
            if counts[answer]:
                return math.inf
            continue
        expected = probability * _ANSWERS
        chi_square += (counts[answer] - expected) ** 2 / expected
        cells += 1
    freedom = cells - 1
    return (chi_square - freedom) / math.sqrt(2 * freedom)


def _always_accept(
    logits: Tensor, drafts: Sequence[Sequence[int]], states: Sequence[SamplingState]
) -> list[list[Chosen]]:
    """Wrong on purpose: drafts are taken as they are."""
    for draft, state in zip(drafts, states, strict=True):
        for token_id in draft:
            if state.ended is None:
                state.append(token_id)
    return []


def _accept_by_a_second_draw(
    logits: Tensor, drafts: Sequence[Sequence[int]], states: Sequence[SamplingState]
) -> list[list[Chosen]]:
    """Wrong in a way that is easily made: a draft is accepted with the target's probability, but
    after a rejection the target is sampled whole, so that drafts come too often."""
    for row, (draft, state) in enumerate(zip(drafts, states, strict=True)):
        for position in range(_WINDOW):
            if state.ended is not None:
                break
            seed, index = state.sampling.seed, state.output_tokens
            weights = probabilities(logits[row, position][None], [state.sampling])[0]
            cumulative = weights.cumsum(-1) / weights.sum()
            if position < len(draft):
                probability = float(weights[draft[position]] / weights.sum())
                if uniform(seed + (1 << 41), index) < probability:
                    state.append(draft[position])
                    continue
            state.append(int(torch.searchsorted(cumulative, uniform(seed, index), right=True)))
            break
    return []


@pytest.mark.parametrize(
    "filters", [{}, {"temperature": 0.6}, {"top_k": 3}, {"top_p": 0.8}, {"min_p": 0.2}]
)
def test_answers_made_with_drafts_follow_the_targets_distribution(
    filters: dict[str, float],
) -> None:
    def sampling(seed: int) -> Sampling:
        return Sampling(_TOKENS, **{"temperature": 1.0, **filters}, seed=seed)  # type: ignore[arg-type]

    assert _excess(_counts(choose_windows, sampling), sampling(0)) < 5.0


@pytest.mark.parametrize("rule", [_always_accept, _accept_by_a_second_draw])
def test_a_wrong_acceptance_rule_would_be_found(rule: Rule) -> None:
    def sampling(seed: int) -> Sampling:
        return Sampling(_TOKENS, temperature=1.0, seed=seed)

    assert _excess(_counts(rule, sampling), sampling(0)) > 50.0
