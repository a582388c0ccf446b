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
from workers.training.drafting import Acceptance, measure
from workers.training.forward import backbone, draft_chain
from workers.training.parameters import initial_parameters
from workers.training.shape import shipped_config


@pytest.fixture(scope="module")
def model() -> HybridModel:
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
    model = driver.model
    state = model.draft_prefill(
        tokens[1 : base + 2],
        hidden[: base + 1],
        driver.draft_kv,
        block_table=driver.table(0, base + 1),
        context_tokens=0,
    )[-1:]
    outputs = [state]
    for step in range(1, depth):
        table = torch.full((1, 20), -1)
        blocks = driver.table(0, base + step + 1)
        table[0, : len(blocks)] = blocks
        state = model.draft_decode(
            tokens[base + step + 1 : base + step + 2],
            state,
            driver.draft_kv,
            block_tables=table,
            context_lens=torch.tensor([base + step]),
        )
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


def test_draft_prefill_in_chunks_equals_whole(model: HybridModel) -> None:
    tokens = torch.tensor(random_prompt(64, 60, seed=2))
    whole, parts = Driver(model), Driver(model)
    hidden = whole.prefill(tokens.tolist())
    expected = model.draft_prefill(
        tokens[1:], hidden[:-1], whole.draft_kv, block_table=whole.table(0, 59), context_tokens=0
    )
    pieces = [
        model.draft_prefill(
            tokens[start + 1 : end + 1],
            hidden[start:end],
            parts.draft_kv,
            block_table=parts.table(0, end),
            context_tokens=start,
        )
        for start, end in ((0, 7), (7, 8), (8, 59))
    ]
    torch.testing.assert_close(torch.cat(pieces), expected, atol=2e-5, rtol=1e-4)


def test_a_model_without_the_block_says_so(make_pair: MakePair) -> None:
    model = make_pair("every_kind").model
    driver = Driver(model)
    with pytest.raises(ValueError, match="no MTP block"):
        model.draft_prefill(
            torch.tensor([1]),
            torch.zeros(1, model.config.hidden_size),
            driver.draft_kv,
            block_table=driver.table(0, 1),
            context_tokens=0,
        )


def test_acceptance_length_is_the_expected_number_of_tokens() -> None:
    first = Acceptance((10, 5, 4), (5, 4, 1))
    assert first.rates == (0.5, 0.8, 0.25)
    assert first.length == pytest.approx(1 + 0.5 + 0.4 + 0.1)
    assert (first + first).rates == first.rates


def test_measuring_tries_every_position_of_the_answer(model: HybridModel) -> None:
    result = measure(model, random_prompt(64, 9, seed=3), 20, 3)
    assert result.tried[0] == 20 - 3
    assert result.tried[1] == result.accepted[0]
    assert result.tried[2] == result.accepted[1]
