"""From sequences to the calls that run on every rank, and back."""

from __future__ import annotations

from collections.abc import Sequence as ListOf

import torch
from torch import Tensor

from workers.engine.native.calls import CopyCall, DraftCall, ReadCall, SettleCall, VerifyCall
from workers.engine.native.passes import ModelPasses
from workers.engine.native.sequence import Sequence
from workers.state.memory import CopyPlan, StateMemory


class ModelRunner:
    """Runs the model over the state of one store. One thread at a time."""

    def __init__(self, passes: ModelPasses, memory: StateMemory) -> None:
        self._passes = passes
        self._store = passes.store
        self._memory = memory

    def read(self, sequence: Sequence, tokens: int) -> Tensor | None:
        """Read `tokens` more of what a sequence has to read.

        Returns float32 logits [1, 1, vocab] after the last of them; None while some are left, or
        when the next token is known already.
        """
        begin = sequence.context_tokens
        unread = sequence.to_read[begin : begin + tokens]
        holding = self._memory.holding(sequence.item.key)
        sequence.context_tokens += len(unread)
        logits = self._passes.read(
            ReadCall(
                token_ids=torch.tensor(unread),
                slot=holding.slot,
                block_table=torch.tensor(holding.blocks),
                context_tokens=begin,
                bounded_tokens=len(sequence.prompt),
                scored=not (sequence.unread_tokens or sequence.output),
            )
        )
        return None if logits is None else logits[None]

    def copy(self, plan: CopyPlan) -> None:
        """Copy state, for a prefix that is cached or reused."""
        self._passes.copy(CopyCall.of(plan))

    def carried_hidden(self, sequence: Sequence) -> Tensor:
        """Hidden state [1, d] of the last position that was read, kept in the slot."""
        slot = self.slot(sequence)
        return self._store.draft_hidden[slot : slot + 1].clone()

    def slot(self, sequence: Sequence) -> int:
        """Where the conv and SSM state of a sequence is."""
        return self._memory.holding(sequence.item.key).slot

    def draft(self, rows: ListOf[Sequence], draft_tokens: int) -> list[list[int]]:
        """Greedy drafts of `draft_tokens` tokens for each row.

        They begin with every context position that the MTP block has not seen.
        """
        undrafted = [row.undrafted for row in rows if row.undrafted is not None]
        counts = [len(hidden) for hidden in undrafted]
        width = max(counts)
        hidden = torch.nn.utils.rnn.pad_sequence(undrafted, batch_first=True)
        next_ids = torch.tensor(
            [
                [*row.tokens_from(row.context_tokens - count + 1), *(0,) * (width - count)]
                for row, count in zip(rows, counts, strict=True)
            ]
        )
        first = [row.context_tokens - count for row, count in zip(rows, counts, strict=True)]
        drafts = self._passes.draft(
            DraftCall(
                next_token_ids=next_ids,
                hidden=hidden,
                block_tables=self._tables(rows),
                context_lens=torch.tensor(first),
                counts=torch.tensor(counts),
                draft_tokens=draft_tokens,
            )
        )
        for row in rows:
            row.undrafted = None
        columns: list[list[int]] = drafts.tolist()
        return columns

    def settle(self, sequence: Sequence) -> None:
        """Make the state of a request whole where it lies, as if its last token had been read.

        Nothing is pending then, and the MTP block has seen all positions but the last, whose
        hidden state is in the slot (see `carried_hidden`).
        """
        hidden = sequence.undrafted
        if hidden is None:
            hidden = torch.empty(0, 0)
        elif (unseen := len(hidden) - 1) > 0:
            first = sequence.context_tokens - len(hidden)
            next_ids = sequence.tokens_from(first + 1)[:unseen]
            self._passes.draft(
                DraftCall(
                    next_token_ids=torch.tensor([next_ids]),
                    hidden=hidden[None, :-1],
                    block_tables=self._tables([sequence]),
                    context_lens=torch.tensor([first]),
                    counts=torch.tensor([unseen]),
                    draft_tokens=1,
                )
            )
        slot = self.slot(sequence)
        self._passes.settle(SettleCall(slot, sequence.pending, hidden[-1:]))
        sequence.pending, sequence.undrafted = 0, None

    def verify(
        self, rows: ListOf[Sequence], drafts: ListOf[ListOf[int]], width: int
    ) -> tuple[Tensor, Tensor]:
        """Feed each row's last token and its drafts.

        Returns hidden states [rows, width, d] and float32 logits [rows, width, vocab]. Rows with
        fewer drafts are padded; what comes out there means nothing.
        """
        windows = [
            [row.output[-1], *draft, *(0,) * (width - 1 - len(draft))]
            for row, draft in zip(rows, drafts, strict=True)
        ]
        return self._passes.verify(
            VerifyCall(
                token_ids=torch.tensor(windows),
                slots=torch.tensor([self.slot(row) for row in rows]),
                block_tables=self._tables(rows),
                context_lens=torch.tensor([row.context_tokens for row in rows]),
                pending=torch.tensor([row.pending for row in rows]),
            )
        )

    def _tables(self, rows: ListOf[Sequence]) -> Tensor:
        tables = [self._memory.holding(row.item.key).blocks for row in rows]
        longest = max(len(table) for table in tables)
        return torch.tensor([table + (-1,) * (longest - len(table)) for table in tables])
