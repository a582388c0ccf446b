"""The model equals transformers in float32, for every shape, and itself however it is driven."""

from __future__ import annotations

import pytest
import torch

from tests.reference_models import SHAPES, reference_greedy
from tests.unit.model.conftest import MakePair
from tests.unit.model.driver import Driver, random_prompt
from workers.checkpoint import load_model

NAMES = sorted(SHAPES)


@pytest.mark.parametrize("name", NAMES)
def test_hidden_states_and_logits_equal_transformers(make_pair: MakePair, name: str) -> None:
    pair = make_pair(name)
    prompt = random_prompt(SHAPES[name].vocab_size, 150, seed=1)
    with torch.no_grad():
        expected = pair.reference.model(torch.tensor([prompt]), use_cache=False)[0][0]
        expected_logits = pair.reference.lm_head(expected)
    hidden = Driver(pair.model).prefill(prompt)
    torch.testing.assert_close(hidden, expected, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(pair.model.logits(hidden), expected_logits, atol=2e-5, rtol=1e-4)
    # A constant answer would be equal too.
    assert len(expected_logits.argmax(-1).unique()) > 20


@pytest.mark.parametrize("length", [1, 2, 5, 33, 260])
@pytest.mark.parametrize("name", NAMES)
def test_greedy_tokens_equal_transformers(make_pair: MakePair, name: str, length: int) -> None:
    pair = make_pair(name)
    prompt = random_prompt(SHAPES[name].vocab_size, length, seed=length)
    expected = reference_greedy(pair.reference, prompt, 20)
    assert Driver(pair.model).greedy(prompt, 20) == expected


@pytest.mark.parametrize(("name", "length"), [("every_kind", 3000), ("odd_sizes", 1531)])
def test_long_prompts_equal_transformers(make_pair: MakePair, name: str, length: int) -> None:
    pair = make_pair(name)
    prompt = random_prompt(SHAPES[name].vocab_size, length, seed=3)
    expected = reference_greedy(pair.reference, prompt, 8)
    driver = Driver(pair.model, max_tokens=length + 8)
    assert driver.greedy(prompt, 8) == expected
    assert driver.greedy(prompt, 8, chunks=[1024, 7, 500]) == expected


@pytest.mark.parametrize("name", NAMES)
def test_chunked_prefill_equals_whole(make_pair: MakePair, name: str) -> None:
    model = make_pair(name).model
    prompt = random_prompt(model.config.vocab_size, 131, seed=4)
    whole, parts = Driver(model), Driver(model)
    expected = whole.prefill(prompt)
    hidden = parts.prefill(prompt, chunks=[1, 2, 17, 64, 1])
    torch.testing.assert_close(hidden, expected, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(parts.state.ssm, whole.state.ssm, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(parts.state.conv, whole.state.conv, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_request_in_a_batch_gets_what_it_gets_alone(make_pair: MakePair, name: str) -> None:
    model = make_pair(name).model
    lengths = [1, 15, 16, 40, 5]
    prompts = [random_prompt(model.config.vocab_size, n, seed=n) for n in lengths]
    together = Driver(model, requests=len(prompts))
    alone = [Driver(model) for _ in prompts]
    for request, prompt in enumerate(prompts):
        together.prefill(prompt, request=request)
        alone[request].prefill(prompt)
    for step in range(20):
        # Requests join at different steps, and the order in the batch changes.
        batch = [r for r in range(len(prompts)) if step >= r]
        tokens = {r: (7 * step + r) % model.config.vocab_size for r in reversed(batch)}
        hidden = together.decode(tokens)
        for row, (request, token) in enumerate(tokens.items()):
            expected = alone[request].decode({0: token})[0]
            torch.testing.assert_close(hidden[row], expected, atol=2e-5, rtol=1e-4)


def test_a_slot_left_dirty_does_not_reach_the_next_prompt(make_pair: MakePair) -> None:
    model = make_pair("every_kind").model
    driver = Driver(model)
    driver.prefill(random_prompt(model.config.vocab_size, 70, seed=1))
    prompt = random_prompt(model.config.vocab_size, 9, seed=2)
    torch.testing.assert_close(driver.prefill(prompt), Driver(model).prefill(prompt))


def test_decode_continues_prefill(make_pair: MakePair) -> None:
    """Where dt has no lower bound that matters, one token at a time is the same as at once."""
    model = make_pair("every_kind").model
    prompt = random_prompt(model.config.vocab_size, 60, seed=5)
    expected = Driver(model).prefill(prompt)[-1]
    driver = Driver(model)
    driver.prefill(prompt[:40])
    for token in prompt[40:]:
        hidden = driver.decode({0: token})
    torch.testing.assert_close(hidden[0], expected, atol=5e-3, rtol=1e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_gives_what_the_cpu_gives(make_pair: MakePair, name: str) -> None:
    pair = make_pair(name)
    prompt = random_prompt(SHAPES[name].vocab_size, 90, seed=6)
    on_gpu = Driver(load_model(pair.published, torch.float32, "cuda"))
    on_cpu = Driver(pair.model)
    hidden = on_gpu.prefill(prompt, chunks=[40]).cpu()
    torch.testing.assert_close(hidden, on_cpu.prefill(prompt), atol=2e-3, rtol=2e-3)
    for token in (1, 2, 3):
        step = on_gpu.decode({0: token}).cpu()
        torch.testing.assert_close(step, on_cpu.decode({0: token}), atol=2e-3, rtol=2e-3)
