"""The draft block drafts the same however it is driven: at once, in steps, or in training."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from tests.unit.model.conftest import MakePair
from tests.unit.model.driver import BLOCK_TOKENS, Driver, random_prompt
from workers.model import HybridModel
from workers.model.assembly import assemble
from workers.training.drafting import Acceptance, speculate
from workers.training.forward import backbone, draft_chain
from workers.training.parameters import initial_parameters
from workers.training.shape import shipped_config


@pytest.fixture(scope="module")
def model(operations: str) -> HybridModel:
    """The shipped shape with random weights of a scale at which drafts differ."""
    config = dataclasses.replace(shipped_config(), vocab_size=64, dtype=torch.float32)
    parameters = initial_parameters(config, seed=3)
    scaled = {
        name: tensor.detach() * (12 if name == "lm_head.weight" else 1)
        for name, tensor in parameters.items()
    }
    return HybridModel(config, assemble(config, scaled))


def drafts_in_steps(
    driver: Driver, tokens: Tensor, hidden: Tensor, base: int, depth: int
) -> list[Tensor]:
    """Draft from position `base` as an engine does, fed with the tokens that follow it."""
    driver.draft_prefill(tokens[: base + 1], hidden[: base + 1])
    outputs, state = [], hidden[base : base + 1]
    for step in range(depth):
        position = base + step
        state = driver.draft({0: (position, [int(tokens[position + 1])])}, state[:, None])
        outputs.append(state)
    return outputs


@pytest.mark.parametrize("base", [0, 14, 15, 31, 48])
def test_training_sees_what_drafting_does(model: HybridModel, base: int) -> None:
    depth = 3
    tokens = torch.tensor(random_prompt(64, 3 * BLOCK_TOKENS + 5, seed=1))
    driver = Driver(model)
    hidden = driver.prefill(tokens.tolist())
    weights, mtp = model.weights, model.weights.mtp
    assert mtp is not None
    whole = backbone(tokens[None], weights, model.config, lambda *_: None)
    torch.testing.assert_close(whole[0], hidden, atol=2e-5, rtol=1e-4)
    chain = draft_chain(tokens[None], whole, weights, mtp, model.config, depth, lambda *_: None)
    served = drafts_in_steps(driver, tokens, hidden, base, depth)
    for ours, theirs in zip(chain, served, strict=True):
        torch.testing.assert_close(ours[0, base], theirs[0], atol=2e-5, rtol=1e-4)


def test_drafts_are_the_same_in_any_chunks_and_windows(model: HybridModel) -> None:
    """True positions may come with the prompt, several at a time, or one by one."""
    tokens = torch.tensor(random_prompt(64, 61, seed=2))
    hidden = Driver(model).prefill(tokens[:60].tolist())
    whole, chunked, windowed = Driver(model), Driver(model), Driver(model)
    whole.draft_prefill(tokens[:60], hidden)
    chunked.draft_prefill(tokens[:60], hidden, chunks=[1, 7, 1, 30])
    windowed.draft_prefill(tokens[:40], hidden[:40])
    for start, count in ((39, 8), (47, 1), (48, 5), (53, 7)):
        width = min(8, 60 - start)
        given = torch.zeros(1, width, dtype=torch.int64)
        given[0, :count] = tokens[start + 1 : start + 1 + count]
        windowed.draft(
            {0: (start, given[0].tolist())}, hidden[None, start : start + width], [count]
        )
    last = {0: (59, [int(tokens[60])])}
    expected = whole.draft(last, hidden[None, 59:60])
    for driver in (chunked, windowed):
        torch.testing.assert_close(
            driver.draft(last, hidden[None, 59:60]), expected, atol=2e-5, rtol=1e-4
        )


def test_a_request_in_a_batch_drafts_what_it_drafts_alone(model: HybridModel) -> None:
    prompts = [torch.tensor(random_prompt(64, n, seed=n)) for n in (3, 16, 40)]
    together, alone = Driver(model, requests=3), [Driver(model) for _ in prompts]
    counts, rows, states = [2, 1, 3], {}, []
    for request, prompt in enumerate(prompts):
        start = len(prompt) - 3
        hidden = Driver(model).prefill(prompt.tolist())
        states.append(hidden[start:])
        rows[request] = (start, [*prompt[start + 1 :].tolist(), 5])
        for driver, index in ((together, request), (alone[request], 0)):
            driver.draft_prefill(prompt[: start + 1], hidden[: start + 1], request=index)
    batch = together.draft(rows, torch.stack(states), counts)
    for request, count in enumerate(counts):
        start, given = rows[request]
        single = alone[request].draft({0: (start, given[:count])}, states[request][None, :count])
        torch.testing.assert_close(batch[request], single[0], atol=2e-5, rtol=1e-4)


def test_a_model_without_the_block_says_so(make_pair: MakePair) -> None:
    model = make_pair("every_kind").model
    with pytest.raises(ValueError, match="no MTP block"):
        Driver(model).draft_prefill(torch.tensor([1]), torch.zeros(1, model.config.hidden_size))


def test_a_chunk_without_the_hidden_state_before_it_is_refused(model: HybridModel) -> None:
    driver = Driver(model)
    with pytest.raises(ValueError, match="draft_hidden"):
        model.draft_prefill(
            torch.tensor([1]),
            torch.zeros(1, model.config.hidden_size),
            driver.state,
            block_table=driver.table(0, 9),
            context_tokens=8,
            draft_hidden=None,
        )


def test_acceptance_length_is_the_expected_number_of_tokens() -> None:
    first = Acceptance((10, 5, 4), (5, 4, 1))
    assert first.rates == (0.5, 0.8, 0.25)
    assert first.length == pytest.approx(1 + 0.5 + 0.4 + 0.1)
    assert (first + first).rates == first.rates


def test_measuring_counts_each_position_when_all_before_it_were_accepted(
    model: HybridModel,
) -> None:
    prompt = random_prompt(64, 9, seed=3)
    tokens, fared = speculate(model, prompt, 20, 3)
    assert tokens == speculate(model, prompt, 20, 0)[0]
    assert fared.tried[1:] == fared.accepted[:-1]
    steps = fared.tried[0]
    assert 20 - 1 <= steps + sum(fared.accepted) <= 20 - 1 + 3
