"""Runs calls on one rank's part of the model and of the state.

Exists so that rank 0 and the ranks that follow it run the same lines: a call is told to the
followers, if there are any, and then run here. One thread at a time.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from workers.engine.native.calls import (
    Call,
    CopyCall,
    DraftCall,
    ReadCall,
    SettleCall,
    SpeculateCall,
    VerifyCall,
)
from workers.model.hybrid import HybridModel
from workers.state.store import StateStore


def _to_nobody(_: Call) -> None:
    pass


class ModelPasses:
    """The model and the state of one rank. On rank 0 `tell` passes every call on, before it runs.

    Results are those of the whole model on rank 0; on others they mean nothing.
    """

    def __init__(
        self,
        model: HybridModel,
        store: StateStore,
        tell: Callable[[Call], object] = _to_nobody,
    ) -> None:
        self.store = store
        self._model = model
        self._device = store.device
        self._drafts = store.geometry.draft_hidden_size > 0
        self._tell = tell

    @property
    def most_draft_tokens(self) -> int:
        """Drafts of a window that the state has room for; 0 where nothing is drafted."""
        return self.store.geometry.max_draft_tokens

    def run(self, call: Call) -> None:
        """Run a call that another rank decided on."""
        match call:
            case ReadCall():
                self.read(call)
            case DraftCall():
                self.draft(call)
            case VerifyCall():
                self.verify(call)
            case SpeculateCall():
                self.speculate(call)
            case SettleCall():
                self.settle(call)
            case CopyCall():
                self.copy(call)

    @torch.inference_mode()
    def read(self, call: ReadCall) -> Tensor | None:
        """Float32 logits [1, vocab] after the last token; None when they are not wanted."""
        self._tell(call)
        token_ids, table = call.token_ids.to(self._device), call.block_table.to(self._device)
        hidden = self._model.prefill(
            token_ids,
            self.store.tensors,
            slot=call.slot,
            block_table=table,
            context_tokens=call.context_tokens,
            bounded_tokens=call.bounded_tokens,
        )
        if self._drafts:
            carried = self.store.draft_hidden[call.slot]
            last = self._model.draft_prefill(
                token_ids,
                hidden,
                self.store.tensors,
                block_table=table,
                context_tokens=call.context_tokens,
                draft_hidden=carried if call.context_tokens else None,
            )
            carried.copy_(last)
        return self._model.logits(hidden[-1:]) if call.scored else None

    @torch.inference_mode()
    def draft(self, call: DraftCall) -> Tensor:
        """Greedy drafts, int64 [b, draft_tokens].

        The first pass takes in every position that the MTP block has not seen, with the true
        hidden states; the others feed the block's own output back (papers: recursive MTP).
        """
        self._tell(call)
        return self._model.drafts(
            call.next_token_ids.to(self._device),
            call.hidden.to(self._device),
            self.store.tensors,
            block_tables=call.block_tables.to(self._device),
            context_lens=call.context_lens.to(self._device),
            counts=call.counts.to(self._device),
            count=call.draft_tokens,
        )

    @torch.inference_mode()
    def verify(self, call: VerifyCall) -> tuple[Tensor, Tensor]:
        """Hidden states [b, w, d] and float32 logits [b, w, vocab] of a window."""
        self._tell(call)
        hidden = self._model.verify(
            call.token_ids.to(self._device),
            self.store.tensors,
            slots=call.slots.to(self._device),
            block_tables=call.block_tables.to(self._device),
            context_lens=call.context_lens.to(self._device),
            pending=call.pending.to(self._device),
        )
        return hidden, self._model.logits(hidden)

    @torch.inference_mode()
    def speculate(self, call: SpeculateCall) -> tuple[Tensor, Tensor, Tensor]:
        """Greedy drafts [b, draft_tokens], and what `verify` returns for windows of them."""
        self._tell(call)
        tables, state = call.block_tables.to(self._device), self.store.tensors
        drafts = self._model.drafts(
            call.next_token_ids.to(self._device),
            call.hidden.to(self._device),
            state,
            block_tables=tables,
            context_lens=call.first.to(self._device),
            counts=call.counts.to(self._device),
            count=call.draft_tokens,
        )
        hidden = self._model.verify(
            torch.cat([call.token_ids.to(self._device)[:, None], drafts], dim=1),
            state,
            slots=call.slots.to(self._device),
            block_tables=tables,
            context_lens=call.context_lens.to(self._device),
            pending=call.pending.to(self._device),
        )
        return drafts, hidden, self._model.logits(hidden)

    @torch.inference_mode()
    def settle(self, call: SettleCall) -> None:
        """Make the state of one request whole."""
        self._tell(call)
        slots = torch.tensor([call.slot], device=self._device)
        pending = torch.tensor([call.pending], device=self._device)
        self._model.commit(self.store.tensors, slots=slots, pending=pending)
        if len(call.hidden):
            self.store.draft_hidden[call.slot].copy_(call.hidden[0])

    @torch.inference_mode()
    def copy(self, call: CopyCall) -> None:
        """Copy state, for a prefix that is cached or reused."""
        self._tell(call)
        self.store.copy(call.plan)
