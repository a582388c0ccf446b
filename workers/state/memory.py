"""All memory of one engine: the blocks and slots of requests, and what the prefix cache keeps.

Exists as the one owner of both, so that a request holds all that it needs or nothing, that
whoever ends it has to remember one key, and that cached prefixes make room before anybody is
refused. Pure, like the pools inside; called by the engine loop only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from workers.state.blocks import Accounts, NumberPool, OutOfMemory, PoolError
from workers.state.prefix_cache import CacheChanges, Checkpoint, PrefixCache

__all__ = ["CopyPlan", "Hit", "Holding", "OutOfMemory", "StateMemory"]


@dataclass(frozen=True, slots=True)
class Holding:
    """What one request holds: blocks in the order of its tokens, and a slot."""

    blocks: tuple[int, ...]
    slot: int


@dataclass(frozen=True, slots=True)
class CopyPlan:
    """What must be copied for a checkpoint to be made or used: slot to slot, block to block."""

    source_slot: int
    target_slot: int
    source_block: int | None = None
    target_block: int | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """A prefix that was found: how many tokens need not be read, and what to copy first."""

    tokens: int
    copies: CopyPlan


class StateMemory:
    """Accounts of all requests of one engine and of its cached prefixes."""

    def __init__(
        self,
        *,
        blocks: int,
        block_tokens: int,
        max_requests: int,
        max_checkpoints: int = 0,
        drafts: bool = False,
    ) -> None:
        """`max_requests` slots are for requests, `max_checkpoints` more for cached prefixes.

        With `drafts` the last token of a cached prefix is not shared: its draft KV depends on the
        token after it, which each request writes for itself.
        """
        self._block_tokens = block_tokens
        self.max_requests = max_requests
        self._max_checkpoints = max_checkpoints
        self._unshared_tokens = 1 if drafts else 0
        self._blocks = NumberPool("KV blocks", blocks)
        self._slots = NumberPool("state slots", max_requests + max_checkpoints)
        self._cache = PrefixCache(block_tokens)
        self._holdings: dict[int, Holding] = {}
        self._quarantined: dict[int, Holding] = {}

    def allocate(self, key: int, tokens: int, *, leased: bool = False) -> Holding:
        """Take blocks for `tokens` tokens and a slot; leased ones wait for `settle`.

        Raises:
            OutOfMemory: there is not enough even without any cached prefix; nothing was taken.
            PoolError: the key already holds memory.
        """
        return self._take(key, (), tokens, leased=leased)

    def allocate_prompt(
        self, key: int, token_ids: Sequence[int], prompt_tokens: int
    ) -> tuple[Holding, Hit | None]:
        """Take blocks and a slot for tokens to read, sharing those of the longest cached prefix.

        Only the first `prompt_tokens` may come from the cache, which holds nothing that was
        computed from generated tokens, and at least one token is left to read, since only reading
        gives logits. Raises as `allocate`.
        """
        checkpoint = self._cache.find(token_ids, min(prompt_tokens, len(token_ids) - 1))
        if checkpoint is None:
            return self._take(key, (), len(token_ids)), None
        self._cache.touch(checkpoint)
        full_blocks = (checkpoint.tokens - self._unshared_tokens) // self._block_tokens
        shared = checkpoint.blocks[:full_blocks]
        try:
            holding = self._take(key, shared, len(token_ids), guard=checkpoint)
        except OutOfMemory:
            # The prefix itself may be what is in the way of a request that needs nearly all blocks.
            return self._take(key, (), len(token_ids)), None
        copies = CopyPlan(checkpoint.slot, holding.slot)
        if full_blocks < len(checkpoint.blocks):
            tail_block = holding.blocks[full_blocks]
            copies = CopyPlan(checkpoint.slot, holding.slot, checkpoint.blocks[-1], tail_block)
        return holding, Hit(checkpoint.tokens, copies)

    def grow(self, key: int, tokens: int) -> Holding:
        """Give a request the blocks for `tokens` tokens in all; raises OutOfMemory."""
        holding = self._held(key)
        missing = -(-tokens // self._block_tokens) - len(holding.blocks)
        if missing > 0:
            self._make_room(missing)
            holding = Holding(holding.blocks + self._blocks.take(missing), holding.slot)
            self._holdings[key] = holding
        return holding

    def holding(self, key: int) -> Holding:
        """What a request holds now; raises PoolError when it holds nothing."""
        return self._held(key)

    def settle(self, key: int) -> None:
        """The state that the request's leased memory was set aside for is there."""
        holding = self._held(key)
        self._blocks.settle(holding.blocks)
        self._slots.settle((holding.slot,))

    def free(self, key: int) -> None:
        """Give back all that the request holds."""
        holding = self._held(key)
        self._blocks.release(holding.blocks)
        self._slots.release((holding.slot,))
        del self._holdings[key]

    def quarantine(self, key: int) -> None:
        """The request has ended, but somebody may still write into its leased memory."""
        holding = self._held(key)
        self._blocks.quarantine(holding.blocks)
        self._slots.quarantine((holding.slot,))
        self._quarantined[key] = self._holdings.pop(key)

    def end_quarantine(self, key: int) -> None:
        """Nobody writes into the memory of an ended request any more: it is free."""
        try:
            holding = self._quarantined.pop(key)
        except KeyError:
            raise PoolError(f"request {key} has no memory in quarantine") from None
        self._blocks.end_quarantine(holding.blocks)
        self._slots.end_quarantine((holding.slot,))

    @property
    def quarantined(self) -> int:
        """Ended requests whose memory is in quarantine."""
        return len(self._quarantined)

    def checkpoint(self, key: int, token_ids: Sequence[int]) -> CopyPlan | None:
        """Cache the state that a request has after exactly `token_ids`, its first tokens.

        None when there is nothing to do: it is cached already, or there is no room for it.
        The caller copies before the request goes on.
        """
        if self._max_checkpoints == 0:
            return None
        filed = self._cache.key(token_ids)
        if self._cache.has(filed):
            return None
        holding = self._held(key)
        full_blocks = len(token_ids) // self._block_tokens
        while len(self._cache) >= self._max_checkpoints:
            self._evict()
        blocks = holding.blocks[:full_blocks]
        (slot,) = self._slots.take(1)
        copies = CopyPlan(holding.slot, slot)
        if filed.tail:
            if self._blocks.free == 0:
                self._slots.release((slot,))
                return None
            (copy,) = self._blocks.take(1)
            copies = CopyPlan(holding.slot, slot, holding.blocks[full_blocks], copy)
            blocks += (copy,)
        self._blocks.keep(blocks)
        self._slots.keep((slot,))
        if filed.tail:
            self._blocks.release(blocks[-1:])
        self._slots.release((slot,))
        checkpoint = Checkpoint(len(token_ids), blocks, slot, filed.chain, filed.tail)
        self._cache.add(checkpoint, filed.blocks)
        return copies

    def take_cache_changes(self) -> CacheChanges:
        """Which cached prefixes came and went since the last call, for routers."""
        return self._cache.take_changes()

    @property
    def block_tokens(self) -> int:
        """Tokens in one block."""
        return self._block_tokens

    @property
    def free_slots(self) -> int:
        """Requests that can still be taken."""
        return self.max_requests - len(self._holdings) - len(self._quarantined)

    @property
    def free_tokens(self) -> int:
        """Tokens that free blocks and those of cached prefixes hold."""
        return (self._blocks.free + self._blocks.cached) * self._block_tokens

    @property
    def total_tokens(self) -> int:
        """Tokens that all blocks hold."""
        return self._blocks.accounts.capacity * self._block_tokens

    @property
    def accounts(self) -> tuple[Accounts, Accounts]:
        """Accounts of the blocks and of the slots."""
        return self._blocks.accounts, self._slots.accounts

    def audit(self) -> None:
        """Raise PoolError unless requests, cache and pools agree number by number."""
        self._blocks.audit()
        self._slots.audit()
        held = Counter(n for holding in self._holdings.values() for n in holding.blocks)
        kept = Counter(n for entry in self._cache.checkpoints for n in entry.blocks)
        if self._blocks.holds(held) != held or self._blocks.accounts.cached != len(
            kept.keys() - held.keys()
        ):
            raise PoolError(f"holdings {held} and checkpoints {kept} differ from the block pool")
        slots = self._slots.accounts
        apart = sum(len(holding.blocks) for holding in self._quarantined.values())
        if self._blocks.accounts.quarantined != apart:
            raise PoolError(f"{self._quarantined} differ from the block pool")
        if (slots.allocated + slots.leased, slots.cached, slots.quarantined) != (
            len(self._holdings),
            len(self._cache),
            len(self._quarantined),
        ):
            raise PoolError(f"{len(self._holdings)} requests, {len(self._cache)} cached: {slots}")

    def _take(
        self,
        key: int,
        shared: tuple[int, ...],
        tokens: int,
        *,
        leased: bool = False,
        guard: Checkpoint | None = None,
    ) -> Holding:
        if key in self._holdings:
            raise PoolError(f"request {key} already holds {self._holdings[key]}")
        if self.free_slots == 0:
            raise OutOfMemory(f"state slots: all {self.max_requests} are in use")
        self._blocks.share(shared)
        try:
            needed = -(-tokens // self._block_tokens) - len(shared)
            self._make_room(needed, guard)
            blocks = shared + self._blocks.take(needed, leased=leased)
        except OutOfMemory:
            self._blocks.release(shared)
            raise
        (slot,) = self._slots.take(1, leased=leased)
        self._holdings[key] = Holding(blocks, slot)
        return self._holdings[key]

    def _make_room(self, blocks: int, guard: Checkpoint | None = None) -> None:
        """Evict cached prefixes, oldest first, until `blocks` are free or none is left to evict.

        `guard` is about to be read and is spared: it was touched last, so it comes last.
        """
        if blocks > self._blocks.free + self._blocks.cached:
            return
        while self._blocks.free < blocks and len(self._cache) > (guard is not None):
            self._evict()

    def _evict(self) -> None:
        oldest = self._cache.pop_oldest()
        if oldest is not None:
            self._blocks.drop(oldest.blocks)
            self._slots.drop((oldest.slot,))

    def _held(self, key: int) -> Holding:
        try:
            return self._holdings[key]
        except KeyError:
            raise PoolError(f"request {key} holds no memory: freed twice?") from None
