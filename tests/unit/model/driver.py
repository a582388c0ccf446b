"""Runs a model the way an engine would, with scattered blocks and dirty memory.

Exists so that each test says what it compares and not how state is laid out. Memory starts as
NaN: whatever the model must not read shows up in the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields

import torch
from torch import Tensor

from workers.model import HybridModel, StateTensors

BLOCK_TOKENS = 16
MOST_DRAFTS = 7


class Driver:
    """One model with state for a few requests; request i has slot i and its own blocks."""

    def __init__(self, model: HybridModel, *, requests: int = 1, max_tokens: int = 512) -> None:
        self.model = model
        dtype, self.device = model.weights.embeddings.dtype, model.weights.embeddings.device
        per_request = -(-max_tokens // BLOCK_TOKENS)
        blocks = requests * per_request
        self.state = StateTensors.zeros(
            model.config,
            blocks=blocks,
            block_size=BLOCK_TOKENS,
            slots=requests,
            draft_tokens=MOST_DRAFTS,
            dtype=dtype,
            device=self.device,
        )
        for field in fields(self.state):
            getattr(self.state, field.name).fill_(torch.nan)
        order = torch.randperm(blocks, generator=torch.Generator().manual_seed(0))
        self._tables = order.view(requests, per_request).to(self.device)
        self.lengths = [0] * requests
        self.pending = [0] * requests

    def table(self, request: int, tokens: int) -> Tensor:
        """Blocks that hold `tokens` tokens of the request, no more."""
        return self._tables[request, : -(-tokens // BLOCK_TOKENS)]

    def prefill(
        self,
        prompt: Sequence[int],
        *,
        request: int = 0,
        chunks: Sequence[int] = (),
        bounded_tokens: int | None = None,
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
                bounded_tokens=bounded_tokens,
            )
            pieces.append(hidden)
            start += len(part)
        self.lengths[request] = start
        self.pending[request] = 0
        return torch.cat(pieces)

    def verify(self, windows: Mapping[int, Sequence[int]]) -> Tensor:
        """Hidden states [b, w, d] of a window for each request named; `accept` must follow."""
        requests, width = list(windows), max(len(tokens) for tokens in windows.values())
        padded = [[*windows[request], *[0] * width][:width] for request in requests]
        return self.model.verify(
            self.ints(padded),
            self.state,
            slots=self.ints(requests),
            block_tables=self.tables(
                {r: self.lengths[r] + len(tokens) for r, tokens in windows.items()}
            ),
            context_lens=self.ints([self.lengths[r] for r in requests]),
            pending=self.ints([self.pending[r] for r in requests]),
        )

    def accept(self, request: int, tokens: int) -> None:
        """The first `tokens` tokens of the request's last window are right, the others not."""
        self.pending[request] = tokens
        self.lengths[request] += tokens

    def decode(self, tokens: dict[int, int]) -> Tensor:
        """Hidden states [b, d] of one new token for each request named."""
        hidden = self.verify({request: [token] for request, token in tokens.items()})
        for request in tokens:
            self.accept(request, 1)
        return hidden[:, 0]

    def commit(self, requests: Sequence[int]) -> None:
        """Fold what the requests have pending."""
        self.model.commit(
            self.state,
            slots=self.ints(list(requests)),
            pending=self.ints([self.pending[request] for request in requests]),
        )
        for request in requests:
            self.pending[request] = 0

    def draft_prefill(
        self, tokens: Tensor, hidden: Tensor, *, request: int = 0, chunks: Sequence[int] = ()
    ) -> None:
        """Build the draft KV of a prompt whose hidden states [t, d] are known."""
        start, carried = 0, None
        for size in [*chunks, len(tokens)]:
            part = slice(start, start + size)
            if start >= len(tokens):
                break
            carried = self.model.draft_prefill(
                tokens[part].to(self.device),
                hidden[part],
                self.state,
                block_table=self.table(request, len(tokens)),
                context_tokens=start,
                draft_hidden=carried,
            )
            start += size

    def draft(
        self,
        rows: Mapping[int, tuple[int, Sequence[int]]],
        hidden: Tensor,
        counts: Sequence[int] = (),
    ) -> Tensor:
        """Hidden states [b, d] after drafting from {request: (first position, next tokens)}."""
        requests = list(rows)
        ends = {r: start + len(tokens) for r, (start, tokens) in rows.items()}
        return self.model.draft(
            self.ints([list(rows[r][1]) for r in requests]),
            hidden,
            self.state,
            block_tables=self.tables(ends),
            context_lens=self.ints([rows[r][0] for r in requests]),
            counts=self.ints(list(counts) or [len(rows[r][1]) for r in requests]),
        )

    def ints(self, values: object) -> Tensor:
        """An int64 tensor where the model is."""
        return torch.tensor(values, device=self.device)

    def tables(self, tokens: dict[int, int]) -> Tensor:
        """Block tables that reach so many tokens of each request, padded with -1."""
        rows = [self.table(request, count) for request, count in tokens.items()]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)

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
