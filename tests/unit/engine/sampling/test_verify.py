"""Windows of drafts: the tokens that come out are those that come without any drafts."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protos.tandem.v1.common_pb2 import REASON_LENGTH, REASON_STOP_TOKEN
from tests.unit.engine.sampling.histories import Drafter, Model, generate, hashed_model
from workers.engine.commands import Sampling
from workers.engine.sampling.state import Ending, SamplingState
from workers.engine.sampling.verify import choose_windows

_VOCAB = 7
_PROMPT = (3, 1, 4, 1)
_MODEL = hashed_model(_VOCAB)

samplings = st.builds(
    Sampling,
    max_tokens=st.integers(1, 14),
    temperature=st.sampled_from([0.0, 0.01, 0.7, 1.0, 2.0]),
    top_p=st.sampled_from([1.0, 0.9, 0.4]),
    top_k=st.sampled_from([0, 1, 3, 50]),
    min_p=st.sampled_from([0.0, 0.1, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 0.8, 1.7]),
    presence_penalty=st.sampled_from([0.0, -1.0, 1.5]),
    frequency_penalty=st.sampled_from([0.0, -0.5, 1.0]),
    seed=st.integers(0, 2**64 - 1),
    stop_token_ids=st.frozensets(st.integers(0, _VOCAB - 1), max_size=2),
    logprobs=st.booleans(),
    top_logprobs=st.integers(0, 9),
)


def _oracle(answer: Sequence[int]) -> Drafter:
    """Drafts exactly what comes: everything is accepted."""
    return lambda history: answer[len(history) - len(_PROMPT) :]


def _drafters(answer: Sequence[int], seed: int) -> list[Drafter]:
    rng = random.Random(seed)

    def random_drafts(history: Sequence[int]) -> list[int]:
        return [rng.randrange(_VOCAB) for _ in range(rng.randrange(8))]

    def wrong_late(history: Sequence[int]) -> list[int]:
        draft = list(_oracle(answer)(history))
        place = rng.randrange(8)
        return [*draft[:place], (draft[place] + 1) % _VOCAB] if place < len(draft) else draft

    return [_oracle(answer), random_drafts, wrong_late]


@settings(max_examples=150, deadline=None)
@given(samplings, st.integers(2, 8), st.integers(0, 99))
def test_drafts_change_neither_tokens_nor_logprobs_nor_the_end(
    sampling: Sampling, window: int, seed: int
) -> None:
    alone = SamplingState(sampling, _PROMPT)
    expected = generate(_MODEL, _PROMPT, alone)
    answer = [choice.token_id for choice in expected]
    assert alone.output_token_ids == answer
    for drafter in _drafters(answer, seed):
        state = SamplingState(sampling, _PROMPT)
        assert generate(_MODEL, _PROMPT, state, window, drafter) == expected
        assert (state.output_token_ids, state.ended) == (answer, alone.ended)


@settings(max_examples=60, deadline=None)
@given(st.lists(samplings, min_size=1, max_size=6), st.integers(1, 4), st.integers(0, 99))
def test_a_row_is_chosen_alike_alone_and_among_others(
    mixed: list[Sampling], window: int, seed: int
) -> None:
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(mixed), window, _VOCAB, generator=generator)
    drafts = [[rng.randrange(_VOCAB) for _ in range(rng.randrange(window))] for _ in mixed]

    def states() -> list[SamplingState]:
        return [SamplingState(sampling, _PROMPT) for sampling in mixed]

    before = logits.clone()
    together = choose_windows(logits, drafts, states())
    alone = [
        choose_windows(logits[row : row + 1], [drafts[row]], [state])[0]
        for row, state in enumerate(states())
    ]
    assert together == alone
    assert torch.equal(logits, before)


def test_a_perfect_drafter_fills_every_window() -> None:
    sampling = Sampling(max_tokens=8, temperature=1.0, seed=5)
    answer = [c.token_id for c in generate(_MODEL, _PROMPT, SamplingState(sampling, _PROMPT))]
    calls = 0

    def counting(history: Sequence[int]) -> Sequence[int]:
        nonlocal calls
        calls += 1
        return _oracle(answer)(history)

    generate(_MODEL, _PROMPT, SamplingState(sampling, _PROMPT), 4, counting)
    assert calls == 2


@pytest.mark.parametrize("penalty", [0.0, 0.001])
def test_a_window_ends_with_a_stop_token_and_with_max_tokens(penalty: float) -> None:
    """With a penalty the row takes the general path, without one that of plain rows."""
    logits = torch.nn.functional.one_hot(torch.tensor([[1, 2, 3, 4]]), _VOCAB).float() * 9
    draft = [1, 2, 3]
    for sampling, tokens, reason in (
        (Sampling(9, stop_token_ids=frozenset({2})), [1, 2], REASON_STOP_TOKEN),
        (Sampling(3), [1, 2, 3], REASON_LENGTH),
        (Sampling(2, stop_token_ids=frozenset({2})), [1, 2], REASON_STOP_TOKEN),
        (Sampling(9), [1, 2, 3, 4], None),
    ):
        state = SamplingState(_replace(sampling, penalty), ())
        (window,) = choose_windows(logits, [draft], [state])
        assert [choice.token_id for choice in window] == tokens
        assert state.ended == (None if reason is None else Ending(reason))


def _replace(sampling: Sampling, penalty: float) -> Sampling:
    return Sampling(
        sampling.max_tokens,
        stop_token_ids=sampling.stop_token_ids,
        presence_penalty=penalty,
    )


def test_greedy_takes_the_first_of_equals() -> None:
    logits = torch.tensor([[[0.0, 3.0, 3.0, 1.0]]])
    assert choose_windows(logits, [()], [SamplingState(Sampling(1), ())])[0][0].token_id == 1


def test_an_empty_batch_has_no_windows() -> None:
    assert choose_windows(torch.zeros(0, 3, _VOCAB), [], []) == []


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logprobs_are_those_of_the_model_whatever_the_temperature(temperature: float) -> None:
    model: Model = _MODEL
    sampling = Sampling(3, temperature, presence_penalty=1.0, logprobs=True, top_logprobs=3)
    answer = generate(model, _PROMPT, SamplingState(sampling, _PROMPT))
    history = list(_PROMPT)
    for choice in answer:
        expected = torch.log_softmax(model(history), dim=-1)
        assert choice.logprob == pytest.approx(expected[choice.token_id].item(), abs=1e-6)
        best = expected.topk(3)
        assert [token for token, _ in choice.top] == best.indices.tolist()
        assert [value for _, value in choice.top] == pytest.approx(best.values.tolist(), abs=1e-6)
        history.append(choice.token_id)


def test_logprobs_come_only_where_they_are_asked_for_and_as_many_as_asked() -> None:
    logits = torch.randn(4, 1, _VOCAB, generator=torch.Generator().manual_seed(0))
    asked = [(False, 0), (True, 0), (True, 2), (True, 20)]
    states = [SamplingState(Sampling(1, logprobs=on, top_logprobs=n), ()) for on, n in asked]
    windows = choose_windows(logits, [()] * 4, states)
    assert [window[0].logprob is not None for window in windows] == [False, True, True, True]
    assert [len(window[0].top) for window in windows] == [0, 0, 2, _VOCAB]
