"""Runs a model the way an engine would, with scattered blocks and dirty memory.

Exists so that each test says what it compares and not how state is laid out. Memory starts as
NaN: whatever the model must not read shows up in the result.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from workers.model import HybridModel, StateTensors

BLOCK_TOKENS = 16


class Driver:
    """One model with state for a few requests; request i has slot i and its own blocks."""

    def __init__(self, model: HybridModel, *, requests: int = 1, max_tokens: int = 512) -> None:
        self.model = model
        config = model.config
        dtype, self.device = model.weights.embeddings.dtype, model.weights.embeddings.device
        per_request = -(-max_tokens // BLOCK_TOKENS)
        blocks = requests * per_request

        def dirty(*shape: int, kind: torch.dtype = dtype) -> Tensor:
            return torch.full(shape, torch.nan, dtype=kind, device=self.device)

        kv_shape = (2, config.num_key_value_heads, BLOCK_TOKENS, config.head_dim)
        heads = (config.mamba_num_heads, config.mamba_head_dim, config.ssm_state_size)
        history = max(config.conv_kernel - 1, 0)
        self.state = StateTensors(
            kv=dirty(blocks, config.attention_layers, *kv_shape),
            conv=dirty(requests, config.mamba_layers, config.conv_dim, history),
            ssm=dirty(requests, config.mamba_layers, *heads, kind=torch.float32),
        )
        self.draft_kv = dirty(blocks, config.mtp_attention_layers, *kv_shape)
        order = torch.randperm(blocks, generator=torch.Generator().manual_seed(0))
        self._tables = order.view(requests, per_request).to(self.device)
        self.lengths = [0] * requests

    def table(self, request: int, tokens: int) -> Tensor:
        """Blocks that hold `tokens` tokens of the request, no more."""
        return self._tables[request, : -(-tokens // BLOCK_TOKENS)]

    def prefill(
        self, prompt: Sequence[int], *, request: int = 0, chunks: Sequence[int] = ()
    ) -> Tensor:
        """Hidden states [t, d] of the prompt, read in chunks of the given sizes, then the rest."""
        pieces, start = [], 0
        self.lengths[request] = 0
        for size in [*chunks, len(prompt)]:
            part = list(prompt[start : start + size])
            if not part:
                continue
            hidden = self.model.prefill(
                torch.tensor(part, device=self.device),
                self.state,
                slot=request,
                block_table=self.table(request, start + len(part)),
                context_tokens=start,
            )
            pieces.append(hidden)
            start += len(part)
        self.lengths[request] = start
        return torch.cat(pieces)

    def decode(self, tokens: dict[int, int]) -> Tensor:
        """Hidden states [b, d] of one new token for each request named."""
        requests = list(tokens)
        tables = [self.table(request, self.lengths[request] + 1) for request in requests]
        padded = torch.nn.utils.rnn.pad_sequence(tables, batch_first=True, padding_value=-1)
        hidden = self.model.decode(
            torch.tensor([tokens[request] for request in requests], device=self.device),
            self.state,
            slots=torch.tensor(requests, device=self.device),
            block_tables=padded,
            context_lens=torch.tensor([self.lengths[r] for r in requests], device=self.device),
        )
        for request in requests:
            self.lengths[request] += 1
        return hidden

    def greedy(
        self,
        prompt: Sequence[int],
        max_tokens: int,
        *,
        request: int = 0,
        chunks: Sequence[int] = (),
    ) -> list[int]:
        """Greedy tokens after the prompt."""
        hidden = self.prefill(prompt, request=request, chunks=chunks)[-1:]
        tokens: list[int] = []
        while True:
            tokens.append(int(self.model.logits(hidden)[0].argmax()))
            if len(tokens) == max_tokens:
                return tokens
            hidden = self.decode({request: tokens[-1]})


def random_prompt(vocab_size: int, length: int, seed: int) -> list[int]:
    """Uniform token ids."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, (length,), generator=rng).tolist()
