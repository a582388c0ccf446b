"""Windows of drafts leave the same outputs and the same state as one token at a time."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.reference_models import SHAPES, reference_greedy
from tests.unit.model.conftest import MakePair
from tests.unit.model.driver import MOST_DRAFTS, Driver, random_prompt

NAMES = ("every_kind", "odd_sizes", "all_biases", "no_conv_bias", "only_attention")


def assert_near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=2e-4)


@settings(max_examples=15, deadline=None)
@given(name=st.sampled_from(NAMES), seed=st.integers(0, 2**32))
def test_any_windows_equal_one_token_at_a_time(make_pair: MakePair, name: str, seed: int) -> None:
    model = make_pair(name).model
    rng = random.Random(seed)
    vocab, requests = model.config.vocab_size, rng.randint(1, 4)
    texts = [random_prompt(vocab, 60, seed=rng.getrandbits(30)) for _ in range(requests)]
    windowed = Driver(model, requests=requests, max_tokens=80)
    stepped = Driver(model, requests=requests, max_tokens=80)
    for request, text in enumerate(texts):
        prompt = text[: rng.randint(1, 20)]
        windowed.prefill(prompt, request=request)
        stepped.prefill(prompt, request=request)
    for _ in range(8):
        batch = rng.sample(range(requests), rng.randint(1, requests))
        width = rng.randint(1, MOST_DRAFTS + 1)
        windows, accepted = {}, {}
        for request in batch:
            right = texts[request][windowed.lengths[request] :]
            drafts = rng.randint(0, width - 1) if request != batch[0] else width - 1
            accepted[request] = min(rng.randint(1, drafts + 1), len(right))
            wrong = [rng.randrange(vocab) for _ in range(drafts + 1 - accepted[request])]
            windows[request] = right[: accepted[request]] + wrong
        batch = [request for request in batch if windows[request]]
        if not batch:
            break
        hidden = windowed.verify({request: windows[request] for request in batch})
        for row, request in enumerate(batch):
            windowed.accept(request, accepted[request])
            for index in range(accepted[request]):
                expected = stepped.decode({request: windows[request][index]})
                assert_near(hidden[row, index], expected[0])
        if rng.random() < 0.2:
            windowed.commit(rng.sample(range(requests), rng.randint(1, requests)))
    windowed.commit(range(requests))
    assert windowed.lengths == stepped.lengths
    assert_near(windowed.state.ssm, stepped.state.ssm)
    assert_near(windowed.state.conv, stepped.state.conv)


@pytest.mark.parametrize("width", [2, 4, 8])
@pytest.mark.parametrize("name", sorted(SHAPES))
def test_greedy_windows_give_the_tokens_of_transformers(
    make_pair: MakePair, name: str, width: int
) -> None:
    """Drafts are right, wrong from the middle on, and wrong at once, in turn."""
    pair = make_pair(name)
    vocab = SHAPES[name].vocab_size
    prompt = random_prompt(vocab, 23, seed=width)
    expected = reference_greedy(pair.reference, prompt, 40)
    driver = Driver(pair.model)
    hidden = driver.prefill(prompt)[-1:]
    tokens = [int(pair.model.logits(hidden)[0].argmax())]
    steps = 0
    while len(tokens) < len(expected):
        right = (width - 1, width // 2, 0)[steps % 3]
        drafts = expected[len(tokens) : len(tokens) + width - 1]
        drafts = [t if i < right else (t + 1) % vocab for i, t in enumerate(drafts)]
        chosen = pair.model.logits(driver.verify({0: [tokens[-1], *drafts]})[0]).argmax(-1)
        emitted = [int(chosen[0])]
        while len(emitted) <= len(drafts) and drafts[len(emitted) - 1] == emitted[-1]:
            emitted.append(int(chosen[len(emitted)]))
        driver.accept(0, len(emitted))
        tokens += emitted
        steps += 1
    assert tokens[: len(expected)] == expected
    assert steps < len(expected) - 1


def test_prefill_leaves_nothing_pending(make_pair: MakePair) -> None:
    """A slot taken over from a request that had accepted drafts starts clean."""
    model = make_pair("every_kind").model
    driver, fresh = Driver(model), Driver(model)
    driver.prefill([1, 2, 3])
    driver.verify({0: [4, 5, 6, 7]})
    driver.accept(0, 4)
    text = random_prompt(model.config.vocab_size, 30, seed=1)
    for each in (driver, fresh):
        each.prefill(text)
    windows = [each.verify({0: [8, 9, 10]}) for each in (driver, fresh)]
    torch.testing.assert_close(*windows)


def test_generated_tokens_are_read_again_as_they_were_generated(make_pair: MakePair) -> None:
    """With the prompt named, a prefill over prompt and answer is what decoding had made."""
    model = make_pair("every_kind").model
    text = random_prompt(model.config.vocab_size, 90, seed=7)
    decoded, again, all_bounded = Driver(model), Driver(model), Driver(model)
    decoded.prefill(text[:20])
    for token in text[20:]:
        hidden = decoded.decode({0: token})
    repeated = again.prefill(text, chunks=[15, 30], bounded_tokens=20)[-1]
    assert_near(repeated, hidden[0])
    assert_near(again.state.ssm, decoded.state.ssm)
    all_bounded.prefill(text)
    assert (all_bounded.state.ssm - decoded.state.ssm).abs().max() > 1e-3


def test_a_window_may_reach_beyond_the_blocks_of_its_request(make_pair: MakePair) -> None:
    model = make_pair("every_kind").model
    text = random_prompt(model.config.vocab_size, 32, seed=3)
    narrow, roomy = Driver(model, max_tokens=32), Driver(model, max_tokens=64)
    outputs = []
    for driver, reach in ((narrow, 32), (roomy, 64)):
        driver.prefill(text[:30])
        hidden = model.verify(
            driver.ints([[*text[30:], 1, 2, 3, 4]]),
            driver.state,
            slots=driver.ints([0]),
            block_tables=driver.tables({0: reach}),
            context_lens=driver.ints([30]),
            pending=driver.ints([0]),
        )
        outputs.append(hidden[:, :2])
    torch.testing.assert_close(*outputs)
    assert narrow.state.kv.isfinite().all()
