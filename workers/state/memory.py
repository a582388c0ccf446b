"""The blocks and the slot of each request, taken together and freed together.

Exists so that a request holds all that it needs or nothing, and so that whoever ends it has to
remember one key. Pure, like the pools inside; one owner, the engine loop.
"""

from __future__ import annotations

from dataclasses import dataclass

from workers.state.blocks import Accounts, BlockPool, OutOfMemory, PoolError, SlotPool

__all__ = ["Holding", "OutOfMemory", "StateMemory"]


@dataclass(frozen=True, slots=True)
class Holding:
    """What one request holds."""

    blocks: tuple[int, ...]
    slot: int


class StateMemory:
    """Accounts of all requests of one engine."""

    def __init__(self, *, blocks: int, slots: int, block_tokens: int) -> None:
        self._blocks = BlockPool(blocks, block_tokens)
        self._slots = SlotPool(slots)
        self._holdings: dict[int, Holding] = {}

    def allocate(
        self, key: int, tokens: int, *, leased: bool = False
    ) -> tuple[tuple[int, ...], int]:
        """Take blocks for `tokens` tokens and a slot: (blocks, slot).

        With `leased` they count as set aside until `settle`.

        Raises:
            OutOfMemory: there is not enough of one of the two; nothing was taken.
            PoolError: the key already holds memory.
        """
        if key in self._holdings:
            raise PoolError(f"request {key} already holds {self._holdings[key]}")
        blocks = self._blocks.take_for(tokens, leased=leased)
        try:
            (slot,) = self._slots.take(1, leased=leased)
        except OutOfMemory:
            self._blocks.free(blocks)
            raise
        self._holdings[key] = Holding(blocks, slot)
        return blocks, slot

    def settle(self, key: int) -> None:
        """The state that the request's leased memory was set aside for is there."""
        holding = self._held(key)
        self._blocks.settle(holding.blocks)
        self._slots.settle((holding.slot,))

    def free(self, key: int) -> None:
        """Give back all that the request holds."""
        holding = self._held(key)
        self._blocks.free(holding.blocks)
        self._slots.free((holding.slot,))
        del self._holdings[key]

    @property
    def free_slots(self) -> int:
        """Requests that could still be taken, as far as slots go."""
        return self._slots.accounts.free

    @property
    def free_tokens(self) -> int:
        """Tokens that the free blocks hold."""
        return self._blocks.free_tokens

    @property
    def total_tokens(self) -> int:
        """Tokens that all blocks hold."""
        return self._blocks.total_tokens

    @property
    def accounts(self) -> tuple[Accounts, Accounts]:
        """Accounts of the blocks and of the slots."""
        return self._blocks.accounts, self._slots.accounts

    def audit(self) -> None:
        """Raise PoolError unless holdings and pools agree number by number."""
        self._blocks.audit()
        self._slots.audit()
        blocks, slots = self._blocks.accounts, self._slots.accounts
        held_blocks = sum(len(holding.blocks) for holding in self._holdings.values())
        if held_blocks != blocks.allocated + blocks.leased:
            raise PoolError(f"requests hold {held_blocks} blocks, the pool says {blocks}")
        if len(self._holdings) != slots.allocated + slots.leased:
            raise PoolError(f"requests hold {len(self._holdings)} slots, the pool says {slots}")

    def _held(self, key: int) -> Holding:
        try:
            return self._holdings[key]
        except KeyError:
            raise PoolError(f"request {key} holds no memory: freed twice?") from None
