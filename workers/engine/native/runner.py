"""Forward passes for the engine: from sequences to the tensors that the model takes, and back."""

from __future__ import annotations

from collections.abc import Sequence as ListOf

import torch
from torch import Tensor

from workers.engine.native.sequence import Sequence
from workers.model.hybrid import HybridModel
from workers.state.store import StateStore


class ModelRunner:
    """Runs the model over the state of one store. One thread at a time."""

    def __init__(self, model: HybridModel, store: StateStore, device: torch.device) -> None:
        self._model = model
        self._store = store
        self._device = device

    @torch.inference_mode()
    def prefill_chunk(self, sequence: Sequence, chunk_tokens: int) -> Tensor | None:
        """Read up to `chunk_tokens` more of the prompt.

        Returns float32 logits [1, vocab] after the last prompt token, None while some are left.
        """
        begin = sequence.context_tokens
        tokens = sequence.prompt[begin : begin + chunk_tokens]
        hidden = self._model.prefill(
            torch.tensor(tokens, device=self._device),
            self._store.tensors,
            slot=sequence.slot,
            block_table=torch.tensor(sequence.blocks, device=self._device),
            context_tokens=begin,
        )
        sequence.context_tokens += len(tokens)
        if sequence.context_tokens < len(sequence.prompt):
            return None
        return self._model.logits(hidden[-1:])

    @torch.inference_mode()
    def decode(self, sequences: ListOf[Sequence]) -> Tensor:
        """Feed the last token of each sequence; returns float32 logits [sequences, vocab]."""
        most_blocks = max(len(sequence.blocks) for sequence in sequences)
        tables = [
            sequence.blocks + (-1,) * (most_blocks - len(sequence.blocks)) for sequence in sequences
        ]
        hidden = self._model.decode(
            self._column([sequence.last_token for sequence in sequences]),
            self._store.tensors,
            slots=self._column([sequence.slot for sequence in sequences]),
            block_tables=torch.tensor(tables, device=self._device),
            context_lens=self._column([sequence.context_tokens for sequence in sequences]),
        )
        for sequence in sequences:
            sequence.context_tokens += 1
        return self._model.logits(hidden)

    def _column(self, values: list[int]) -> Tensor:
        return torch.tensor(values, device=self._device)
