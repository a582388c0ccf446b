"""From sequences to the calls that run on every rank, and back."""

from __future__ import annotations

from collections.abc import Sequence as ListOf

import torch
from torch import Tensor

from workers.engine.native.calls import (
    CopyCall,
    DraftCall,
    ReadCall,
    SettleCall,
    SpeculateCall,
    VerifyCall,
)
from workers.engine.native.integers import integers
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
            tokens = sequence.tokens_from(first + 1)[:unseen]
            next_ids, table, context_lens, counts = integers(
                tokens, self._tables([sequence]), [first], [unseen]
            )
            self._passes.draft(
                DraftCall(
                    next_token_ids=next_ids[None],
                    hidden=hidden[None, :-1],
                    block_tables=table[None],
                    context_lens=context_lens,
                    counts=counts,
                    draft_tokens=1,
                )
            )
        slot = self.slot(sequence)
        self._passes.settle(SettleCall(slot, sequence.pending, hidden[-1:]))
        sequence.pending, sequence.undrafted = 0, None

    def verify(self, rows: ListOf[Sequence]) -> tuple[Tensor, Tensor]:
        """Feed each row's last token.

        Returns hidden states [rows, 1, d] and float32 logits [rows, 1, vocab].
        """
        token_ids, tables, slots, context_lens, pending = integers(*self._windows(rows))
        return self._passes.verify(
            VerifyCall(
                token_ids=token_ids[:, None],
                slots=slots,
                block_tables=tables.view(len(rows), -1),
                context_lens=context_lens,
                pending=pending,
            )
        )

    def _windows(self, rows: ListOf[Sequence]) -> tuple[list[int], ...]:
        """First tokens, block tables, slots, context lengths and pending tokens of all rows."""
        return (
            [row.output[-1] for row in rows],
            self._tables(rows),
            [self.slot(row) for row in rows],
            [row.context_tokens for row in rows],
            [row.pending for row in rows],
        )

    def speculate(
        self, rows: ListOf[Sequence], draft_tokens: int
    ) -> tuple[list[list[int]], Tensor, Tensor]:
        """Draft `draft_tokens` tokens for each row, and feed its last token and these.

        Drafts begin with every context position that the MTP block has not seen.

        Returns the drafts, hidden states [rows, draft_tokens + 1, d] and float32 logits
        [rows, draft_tokens + 1, vocab].
        """
        undrafted = [row.undrafted for row in rows if row.undrafted is not None]
        counts = [len(hidden) for hidden in undrafted]
        width = max(counts)
        if len(rows) == 1:
            hidden = undrafted[0][None]
        else:
            hidden = torch.nn.utils.rnn.pad_sequence(undrafted, batch_first=True)
        places = [row.context_tokens - count for row, count in zip(rows, counts, strict=True)]
        known: list[int] = []
        for row, place, count in zip(rows, places, counts, strict=True):
            known += [*row.tokens_from(place + 1), *(0,) * (width - count)]
        next_ids, valid, first, *window = integers(known, counts, places, *self._windows(rows))
        token_ids, tables, slots, context_lens, pending = window
        drafts, hidden, logits = self._passes.speculate(
            SpeculateCall(
                next_token_ids=next_ids.view(len(rows), width),
                hidden=hidden,
                counts=valid,
                first=first,
                token_ids=token_ids,
                slots=slots,
                block_tables=tables.view(len(rows), -1),
                context_lens=context_lens,
                pending=pending,
                draft_tokens=draft_tokens,
            )
        )
        for row in rows:
            row.undrafted = None
        columns: list[list[int]] = drafts.tolist()
        return columns, hidden, logits

    def _tables(self, rows: ListOf[Sequence]) -> list[int]:
        """Block tables, one after the other, padded with -1 to equal lengths."""
        tables = [self._memory.holding(row.item.key).blocks for row in rows]
        longest = max(len(table) for table in tables)
        padded: list[int] = []
        for table in tables:
            padded += [*table, *(-1,) * (longest - len(table))]
        return padded
