"""Greedy speculation gives the tokens of plain decoding, whatever is drafted."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

from tests.unit.model.driver import Driver, random_prompt
from workers.checkpoint import load_model
from workers.model import HybridModel
from workers.model.assembly import assemble
from workers.training.export import DEFAULT_OUTPUT
from workers.training.parameters import initial_parameters
from workers.training.shape import shipped_config

SHIPPED = Path(__file__).parents[3] / DEFAULT_OUTPUT


@pytest.fixture(scope="module")
def random_model(operations: str) -> HybridModel:
    """The shipped shape with weights at which drafts are sometimes right."""
    config = dataclasses.replace(shipped_config(), vocab_size=16, dtype=torch.float32)
    parameters = initial_parameters(config, seed=5)
    scaled = {
        name: tensor.detach() * (8 if name == "lm_head.weight" else 1)
        for name, tensor in parameters.items()
    }
    return HybridModel(config, assemble(config, scaled))


@pytest.fixture(scope="module")
def shipped(operations: str) -> HybridModel:
    return load_model(SHIPPED, torch.float32)


class Speculation:
    """Requests that draft and verify in one batch, as an engine does."""

    def __init__(self, model: HybridModel, prompts: Sequence[Sequence[int]]) -> None:
        self.model = model
        self.driver = Driver(model, requests=len(prompts))
        self.tokens: list[list[int]] = []
        self.hidden: list[Tensor] = []  # of the positions that the MTP block has yet to see
        self.drafted = self.accepted = 0
        for request, prompt in enumerate(prompts):
            hidden = self.driver.prefill(prompt, request=request, chunks=[7])
            self.driver.draft_prefill(torch.tensor(prompt), hidden, request=request, chunks=[7])
            self.tokens.append([int(model.logits(hidden[-1]).argmax())])
            self.hidden.append(hidden[-1:])

    def step(self, draft_tokens: int) -> None:
        """One window for every request."""
        drafts = self._draft(draft_tokens) if draft_tokens else [[] for _ in self.tokens]
        windows = {r: [t[-1], *drafts[r]] for r, t in enumerate(self.tokens)}
        hidden = self.driver.verify(windows)
        chosen = self.model.logits(hidden).argmax(-1).tolist()
        for request, draft in enumerate(drafts):
            right = 0
            while right < len(draft) and draft[right] == chosen[request][right]:
                right += 1
            self.driver.accept(request, right + 1)
            self.tokens[request] += chosen[request][: right + 1]
            self.hidden[request] = torch.cat(
                [self.hidden[request][: 0 if draft_tokens else None], hidden[request, : right + 1]]
            )
            self.drafted += len(draft)
            self.accepted += right

    def _draft(self, draft_tokens: int) -> list[list[int]]:
        counts = [len(hidden) for hidden in self.hidden]
        starts = [self.driver.lengths[r] - count for r, count in enumerate(counts)]
        width = max(counts)
        rows = {
            r: (starts[r], [*self.tokens[r][-count:], *[0] * width][:width])
            for r, count in enumerate(counts)
        }
        hidden = torch.nn.utils.rnn.pad_sequence(self.hidden, batch_first=True)
        state = self.driver.draft(rows, hidden, counts)
        drafts: list[list[int]] = [[] for _ in self.tokens]
        for depth in range(draft_tokens):
            chosen = self.model.logits(state).argmax(-1).tolist()
            for request, token in enumerate(chosen):
                drafts[request].append(token)
            if depth + 1 < draft_tokens:
                rows = {
                    r: (start + counts[r] + depth, [chosen[r]]) for r, start in enumerate(starts)
                }
                state = self.driver.draft(rows, state[:, None])
        return drafts


def speculate(
    model: HybridModel, prompts: Sequence[Sequence[int]], depths: Sequence[int], max_tokens: int
) -> Speculation:
    """Steps of the given draft lengths in turn, until every request has its tokens."""
    run = Speculation(model, prompts)
    step = 0
    while min(len(tokens) for tokens in run.tokens) < max_tokens:
        run.step(depths[step % len(depths)])
        step += 1
    return run


@pytest.mark.parametrize("depths", [[1], [2], [3], [4], [5], [6], [7], [3, 0, 0, 5, 1]], ids=str)
def test_tokens_are_those_without_drafts(random_model: HybridModel, depths: list[int]) -> None:
    prompts = [random_prompt(16, length, seed=length) for length in (5, 16, 31)]
    plain = [Driver(random_model).greedy(prompt, 40) for prompt in prompts]
    run = speculate(random_model, prompts, depths, 40)
    assert [tokens[:40] for tokens in run.tokens] == plain
    assert 0 < run.accepted < run.drafted


@pytest.mark.parametrize("draft_tokens", [1, 3, 7])
def test_the_shipped_model_drafts_well(shipped: HybridModel, draft_tokens: int) -> None:
    tokenizer = Tokenizer.from_file(str(SHIPPED / "tokenizer.json"))
    texts = ("In the beginning", "Tell me about Lists. ", "And it came to pass, that")
    prompts = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    plain = [Driver(shipped).greedy(prompt, 48) for prompt in prompts]
    run = speculate(shipped, prompts, [draft_tokens], 48)
    assert [tokens[:48] for tokens in run.tokens] == plain
    assert run.accepted / run.drafted > 0.1
