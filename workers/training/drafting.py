"""Greedy drafting with the MTP block, to measure how often its tokens are accepted.

Exists because acceptance must be measured with the serving model (its KV, its one-token steps),
not with the training forward. Every draft is checked against the tokens that greedy decoding
gives without drafts, so what is measured is exactly what greedy speculation would accept.
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


def _state(model: HybridModel, tokens: int) -> tuple[StateTensors, Tensor]:
    """State of one request whose block 0 holds all its tokens, and its draft KV."""
    config = model.config
    dtype, device = model.weights.embeddings.dtype, model.weights.embeddings.device
    block = (2, config.num_key_value_heads, tokens, config.head_dim)
    heads = (config.mamba_num_heads, config.mamba_head_dim, config.ssm_state_size)
    conv = (1, config.mamba_layers, config.conv_dim, config.conv_kernel - 1)
    state = StateTensors(
        kv=torch.zeros(1, config.attention_layers, *block, dtype=dtype, device=device),
        conv=torch.zeros(conv, dtype=dtype, device=device),
        ssm=torch.zeros(1, config.mamba_layers, *heads, device=device),
    )
    draft = torch.zeros(1, config.mtp_attention_layers, *block, dtype=dtype, device=device)
    return state, draft


Pick = Callable[[Tensor], int]


def most_likely(logits: Tensor) -> int:
    """The greedy choice from logits [vocab]."""
    return int(logits.argmax())


def answer(
    model: HybridModel, prompt: Sequence[int], max_tokens: int, pick: Pick = most_likely
) -> tuple[list[int], Tensor]:
    """Tokens chosen one by one after the prompt, and the hidden states of prompt and tokens.

    Returns:
        `max_tokens` tokens, and hidden states [len(prompt) + max_tokens - 1, d]: the last token
        is never fed.
    """
    state, _ = _state(model, len(prompt) + max_tokens)
    table, slot = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    fed = torch.tensor(list(prompt))
    hidden = [model.prefill(fed, state, slot=0, block_table=table, context_tokens=0)]
    tokens = [pick(model.logits(hidden[-1][-1]))]
    while len(tokens) < max_tokens:
        hidden.append(
            model.decode(
                torch.tensor(tokens[-1:]),
                state,
                slots=slot,
                block_tables=table[None],
                context_lens=torch.tensor([len(prompt) + len(tokens) - 1]),
            )
        )
        tokens.append(pick(model.logits(hidden[-1][0])))
    return tokens, torch.cat(hidden)


def measure(
    model: HybridModel, prompt: Sequence[int], max_tokens: int, draft_tokens: int
) -> Acceptance:
    """Draft after every token of a greedy answer and compare with the answer itself."""
    tokens, hidden = answer(model, prompt, max_tokens)
    known = [*prompt, *tokens]
    _, draft_kv = _state(model, len(known))
    table = torch.zeros(1, dtype=torch.int64)
    # First recursion at every position whose next token is known, as a real run would have done.
    first = model.draft_prefill(
        torch.tensor(known[1:]), hidden, draft_kv, block_table=table, context_tokens=0
    )
    tried, accepted = [0] * draft_tokens, [0] * draft_tokens
    for position in range(len(prompt) - 1, len(known) - 1 - draft_tokens):
        kept = draft_kv[:, :, :, :, position + 1 : position + draft_tokens].clone()
        state = first[position : position + 1]
        for depth in range(draft_tokens):
            guess = int(model.logits(state[0]).argmax())
            tried[depth] += 1
            if guess != known[position + 2 + depth]:
                break
            accepted[depth] += 1
            if depth + 1 < draft_tokens:
                state = model.draft_decode(
                    torch.tensor([guess]),
                    state,
                    draft_kv,
                    block_tables=table[None],
                    context_lens=torch.tensor([position + 1 + depth]),
                )
        # Later recursions' keys are of this draft only.
        draft_kv[:, :, :, :, position + 1 : position + draft_tokens] = kept
    return Acceptance(tuple(tried), tuple(accepted))
