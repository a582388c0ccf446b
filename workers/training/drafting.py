"""Greedy drafting with the MTP block, to measure how often its tokens are accepted.

Exists because acceptance must be measured with the serving model (its KV, its one-token steps),
not with the training forward: this is the loop of the engine for one request and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.model import HybridModel, StateTensors


@dataclass(frozen=True, slots=True)
class Acceptance:
    """How drafts fared, by position (first draft token first).

    Attributes:
        tried: positions whose earlier drafts were all right.
        accepted: of those, the ones that were right too.
    """

    tried: tuple[int, ...]
    accepted: tuple[int, ...]

    def __add__(self, other: Acceptance) -> Acceptance:
        tried = (a + b for a, b in zip(self.tried, other.tried, strict=True))
        accepted = (a + b for a, b in zip(self.accepted, other.accepted, strict=True))
        return Acceptance(tuple(tried), tuple(accepted))

    @property
    def rates(self) -> tuple[float, ...]:
        """Conditional acceptance of each position."""
        return tuple(a / max(t, 1) for a, t in zip(self.accepted, self.tried, strict=True))

    @property
    def length(self) -> float:
        """Mean tokens per verify step: 1 + sum over positions of the product of rates so far."""
        total, product = 1.0, 1.0
        for rate in self.rates:
            product *= rate
            total += product
        return total


Pick = Callable[[Tensor], int]


def most_likely(logits: Tensor) -> int:
    """The greedy choice from logits [vocab]."""
    return int(logits.argmax())


def speculate(
    model: HybridModel,
    prompt: Sequence[int],
    max_tokens: int,
    draft_tokens: int,
    pick: Pick = most_likely,
) -> tuple[list[int], Acceptance]:
    """Answer with `draft_tokens` drafts a step; 0 drafts nothing.

    Returns:
        `max_tokens` tokens, which do not depend on `draft_tokens`, and how the drafts fared.

    Raises:
        ValueError: drafts are wanted of a model without an MTP block.
    """
    state = StateTensors.zeros(
        model.config,
        blocks=1,
        block_size=len(prompt) + max_tokens + draft_tokens + 1,
        slots=1,
        draft_tokens=draft_tokens,
        dtype=model.weights.embeddings.dtype,
    )
    table = torch.zeros(1, dtype=torch.int64)
    fed = torch.tensor(list(prompt))
    hidden = model.prefill(fed, state, slot=0, block_table=table, context_tokens=0)
    tokens = [pick(model.logits(hidden[-1]))]
    seen, pending, read = hidden[-1:], 0, len(prompt)
    if draft_tokens:
        model.draft_prefill(
            fed, hidden, state, block_table=table, context_tokens=0, draft_hidden=None
        )
    tried, accepted = [0] * draft_tokens, [0] * draft_tokens
    while len(tokens) < max_tokens:
        drafts = _draft(model, state, tokens[-len(seen) :], seen, read, draft_tokens)
        window = model.verify(
            torch.tensor([[tokens[-1], *drafts]]),
            state,
            slots=table,
            block_tables=table[None],
            context_lens=torch.tensor([read]),
            pending=torch.tensor([pending]),
        )[0]
        logits = model.logits(window)
        made = [pick(logits[0])]
        while len(made) <= draft_tokens and made[-1] == drafts[len(made) - 1]:
            made.append(pick(logits[len(made)]))
        kept = len(made) - 1
        for position in range(min(kept + 1, draft_tokens)):
            tried[position] += 1
        for position in range(kept):
            accepted[position] += 1
        tokens += made
        seen, pending, read = window[: len(made)], len(made), read + len(made)
    return tokens[:max_tokens], Acceptance(tuple(tried), tuple(accepted))


def _draft(
    model: HybridModel,
    state: StateTensors,
    next_ids: Sequence[int],
    hidden: Tensor,
    read: int,
    draft_tokens: int,
) -> list[int]:
    """Draft from hidden states [n, d] of the last n of `read` tokens and the tokens after them."""
    table = torch.zeros(1, 1, dtype=torch.int64)
    position, following = read - len(hidden), list(next_ids)
    drafts: list[int] = []
    for _ in range(draft_tokens):
        last = model.draft(
            torch.tensor([following]),
            hidden[None],
            state,
            block_tables=table,
            context_lens=torch.tensor([position]),
            counts=torch.tensor([len(following)]),
        )
        drafts.append(int(model.logits(last[0]).argmax()))
        position += len(following)
        hidden, following = last, drafts[-1:]
    return drafts
