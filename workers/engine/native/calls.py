"""What every rank of a worker does in one step, in plain tensors and numbers.

Exists as the seam between deciding and computing: rank 0 decides (requests, memory, sampling) and
makes a call; all ranks run it on their part of the model (`passes`). A call holds nothing but
int64 tensors, hidden states and numbers, so it can cross processes as bytes.
b requests, w tokens of a window, d hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from workers.state.memory import CopyPlan


@dataclass(frozen=True, slots=True)
class ReadCall:
    """Read tokens of one request; see `HybridModel.prefill`.

    Attributes:
        token_ids: int64 [t].
        slot: of the request.
        block_table: int64 [n].
        context_tokens: tokens read before.
        bounded_tokens: length of the prompt.
        scored: whether the logits after the last token are wanted.
    """

    token_ids: Tensor
    slot: int
    block_table: Tensor
    context_tokens: int
    bounded_tokens: int
    scored: bool


@dataclass(frozen=True, slots=True)
class DraftCall:
    """Draft tokens greedily: one pass over unseen positions, then the block's own output.

    Attributes:
        next_token_ids: int64 [b, w], the token after each position that the MTP block has not
            seen; what comes after `counts` may be any.
        hidden: [b, w, d], their hidden states.
        block_tables: int64 [b, n], padded with -1.
        context_lens: int64 [b], the first of the positions.
        counts: int64 [b], how many there are.
        draft_tokens: how many to draft.
    """

    next_token_ids: Tensor
    hidden: Tensor
    block_tables: Tensor
    context_lens: Tensor
    counts: Tensor
    draft_tokens: int


@dataclass(frozen=True, slots=True)
class VerifyCall:
    """Read a window of each request; see `HybridModel.verify` for all fields."""

    token_ids: Tensor
    slots: Tensor
    block_tables: Tensor
    context_lens: Tensor
    pending: Tensor


@dataclass(frozen=True, slots=True)
class SpeculateCall:
    """Draft from positions that the MTP block has not seen, then read the drafts as a window.

    One call, since nothing is decided in between.

    Attributes:
        next_token_ids: as in `DraftCall`, like hidden and counts.
        hidden: [b, w, d].
        counts: int64 [b].
        first: int64 [b], the first of the positions; they end where the window begins.
        token_ids: int64 [b], the first token of each window.
        slots: as in `VerifyCall`, like what follows.
        block_tables: int64 [b, n].
        context_lens: int64 [b].
        pending: int64 [b].
        draft_tokens: how many to draft.
    """

    next_token_ids: Tensor
    hidden: Tensor
    counts: Tensor
    first: Tensor
    token_ids: Tensor
    slots: Tensor
    block_tables: Tensor
    context_lens: Tensor
    pending: Tensor
    draft_tokens: int


@dataclass(frozen=True, slots=True)
class SettleCall:
    """Make the state of one request whole, so that it can leave: fold in what is pending.

    Attributes:
        slot: of the request.
        pending: as in `VerifyCall`.
        hidden: [1, d], of the last position, from which the next draft begins; [0, 0] without
            drafts.
    """

    slot: int
    pending: int
    hidden: Tensor


@dataclass(frozen=True, slots=True)
class CopyCall:
    """Copy committed state from slot to slot and, unless -1, from block to block."""

    source_slot: int
    target_slot: int
    source_block: int
    target_block: int

    @classmethod
    def of(cls, plan: CopyPlan) -> CopyCall:
        source, target = plan.source_block, plan.target_block
        if source is None or target is None:
            source = target = -1
        return cls(plan.source_slot, plan.target_slot, source, target)

    @property
    def plan(self) -> CopyPlan:
        source = None if self.source_block < 0 else self.source_block
        target = None if self.target_block < 0 else self.target_block
        return CopyPlan(self.source_slot, self.target_slot, source, target)


Call = ReadCall | DraftCall | VerifyCall | SpeculateCall | SettleCall | CopyCall
CALLS: tuple[type[Call], ...] = (
    ReadCall,
    DraftCall,
    VerifyCall,
    SpeculateCall,
    SettleCall,
    CopyCall,
)
