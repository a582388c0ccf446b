"""Forward passes for the engine: from sequences to the tensors that the model takes, and back."""

from __future__ import annotations

from collections.abc import Sequence as ListOf

import torch
from torch import Tensor

from workers.engine.native.sequence import Sequence
from workers.model.hybrid import HybridModel
from workers.state.memory import StateMemory
from workers.state.store import StateStore


class ModelRunner:
    """Runs the model over the state of one store. One thread at a time."""

    def __init__(
        self, model: HybridModel, store: StateStore, memory: StateMemory, device: torch.device
    ) -> None:
        self._model = model
        self._store = store
        self._memory = memory
        self._device = device
        self._drafts = store.geometry.draft_hidden_size > 0

    @torch.inference_mode()
    def read(self, sequence: Sequence, tokens: int) -> Tensor | None:
        """Read `tokens` more of what a sequence has to read.

        Returns float32 logits [1, 1, vocab] after the last of them; None while some are left, or
        when the next token is known already.
        """
        begin = sequence.context_tokens
        unread = sequence.to_read[begin : begin + tokens]
        holding = self._memory.holding(sequence.item.key)
        table = self._tensor(holding.blocks)
        token_ids = self._tensor(unread)
        hidden = self._model.prefill(
            token_ids,
            self._store.tensors,
            slot=holding.slot,
            block_table=table,
            context_tokens=begin,
            bounded_tokens=len(sequence.prompt),
        )
        if self._drafts:
            carried = self._store.draft_hidden[holding.slot]
            last = self._model.draft_prefill(
                token_ids,
                hidden,
                self._store.tensors,
                block_table=table,
                context_tokens=begin,
                draft_hidden=carried if begin else None,
            )
            carried.copy_(last)
        sequence.context_tokens += len(unread)
        if sequence.unread_tokens or sequence.output:
            return None
        return self._model.logits(hidden[-1:])[None]

    def carried_hidden(self, sequence: Sequence) -> Tensor:
        """Hidden state [1, d] of the last position that was read, kept in the slot."""
        slot = self.slot(sequence)
        return self._store.draft_hidden[slot : slot + 1].clone()

    def slot(self, sequence: Sequence) -> int:
        """Where the conv and SSM state of a sequence is."""
        return self._memory.holding(sequence.item.key).slot

    @torch.inference_mode()
    def draft(self, rows: ListOf[Sequence], draft_tokens: int) -> list[list[int]]:
        """Greedy drafts of `draft_tokens` tokens for each row.

        The first pass takes in every context position that the MTP block has not seen, with the
        true hidden states; the others feed the block's own output back (papers: recursive MTP).
        """
        undrafted = [row.undrafted for row in rows if row.undrafted is not None]
        counts = [len(hidden) for hidden in undrafted]
        width = max(counts)
        hidden = torch.nn.utils.rnn.pad_sequence(undrafted, batch_first=True)
        next_ids = self._tensor(
            [
                [*row.tokens_from(row.context_tokens - count + 1), *(0,) * (width - count)]
                for row, count in zip(rows, counts, strict=True)
            ]
        )
        tables = self._tables(rows)
        positions = self._tensor(
            [row.context_tokens - count for row, count in zip(rows, counts, strict=True)]
        )
        state, drafts = self._store.tensors, []
        valid = self._tensor(counts)
        one = torch.ones_like(valid)
        for _ in range(draft_tokens):
            last = self._model.draft(
                next_ids, hidden, state, block_tables=tables, context_lens=positions, counts=valid
            )
            drafts.append(self._model.logits(last).argmax(dim=-1))
            positions, valid = positions + valid, one
            next_ids, hidden = drafts[-1][:, None], last[:, None]
        for row in rows:
            row.undrafted = None
        columns: list[list[int]] = torch.stack(drafts, dim=1).tolist()
        return columns

    @torch.inference_mode()
    def verify(self, rows: ListOf[Sequence], drafts: ListOf[ListOf[int]], width: int) -> Tensor:
        """Feed each row's last token and its drafts; returns hidden [rows, width, d].

        Rows with fewer drafts are padded; what comes out there means nothing.
        """
        windows = [
            [row.output[-1], *draft, *(0,) * (width - 1 - len(draft))]
            for row, draft in zip(rows, drafts, strict=True)
        ]
        return self._model.verify(
            self._tensor(windows),
            self._store.tensors,
            slots=self._tensor([self.slot(row) for row in rows]),
            block_tables=self._tables(rows),
            context_lens=self._tensor([row.context_tokens for row in rows]),
            pending=self._tensor([row.pending for row in rows]),
        )

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 logits [..., vocab] of hidden states [..., d]."""
        return self._model.logits(hidden)

    def _tables(self, rows: ListOf[Sequence]) -> Tensor:
        tables = [self._memory.holding(row.item.key).blocks for row in rows]
        longest = max(len(table) for table in tables)
        return self._tensor([table + (-1,) * (longest - len(table)) for table in tables])

    def _tensor(self, values: ListOf[object]) -> Tensor:
        return torch.tensor(values, device=self._device)
