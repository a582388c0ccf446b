"""Who holds which KV block and which Mamba slot: numbers only, no memory.

Exists so that leaks and double frees are errors where they happen instead of wrong answers later.
One owner, the engine loop, calls everything here; nothing is locked.

A number is free, allocated (its request runs here) or leased (set aside for state that another
worker will write). Lowest numbers go first, which keeps requests contiguous while little is in
use, and contiguous blocks travel in one descriptor.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass


class OutOfMemory(Exception):
    """A request needs more than is free now; nothing was taken."""


class PoolError(Exception):
    """A number was freed, settled or counted wrongly: a bug in the caller or in the pool."""


@dataclass(frozen=True, slots=True)
class Accounts:
    """How many numbers of a pool are in which state; they add up to the capacity."""

    capacity: int
    free: int
    allocated: int
    leased: int


class NumberPool:
    """Hands out the numbers 0..capacity-1, each to one holder at a time."""

    def __init__(self, name: str, capacity: int) -> None:
        if capacity < 0:
            raise ValueError(f"{name}: capacity {capacity} must not be negative")
        self._name = name
        self._capacity = capacity
        self._free = list(range(capacity))  # a heap
        self._allocated: set[int] = set()
        self._leased: set[int] = set()

    @property
    def accounts(self) -> Accounts:
        """The current state of the pool, counted."""
        return Accounts(self._capacity, len(self._free), len(self._allocated), len(self._leased))

    def take(self, count: int, *, leased: bool = False) -> tuple[int, ...]:
        """Take `count` numbers, ascending.

        Raises:
            OutOfMemory: fewer are free; none was taken.
        """
        if count > len(self._free):
            raise OutOfMemory(
                f"{self._name}: {count} needed, {len(self._free)} of {self._capacity} free"
            )
        numbers = tuple(heapq.heappop(self._free) for _ in range(count))
        (self._leased if leased else self._allocated).update(numbers)
        return numbers

    def settle(self, numbers: Iterable[int]) -> None:
        """Turn leased numbers into allocated ones: what was awaited has arrived."""
        settled = self._distinct(numbers)
        if not settled <= self._leased:
            raise PoolError(f"{self._name}: not leased: {sorted(settled - self._leased)}")
        self._leased -= settled
        self._allocated |= settled

    def free(self, numbers: Iterable[int]) -> None:
        """Give back allocated or leased numbers, all or none of them."""
        returned = self._distinct(numbers)
        held = self._allocated | self._leased if returned else returned
        if not returned <= held:
            raise PoolError(f"{self._name}: not held, so not freed: {sorted(returned - held)}")
        self._allocated -= returned
        self._leased -= returned
        for number in returned:
            heapq.heappush(self._free, number)

    def audit(self) -> None:
        """Raise PoolError unless every number is in exactly one state."""
        everything = [*self._free, *self._allocated, *self._leased]
        if sorted(everything) != list(range(self._capacity)):
            raise PoolError(
                f"{self._name}: {self.accounts} do not cover 0..{self._capacity - 1} exactly once"
            )

    def _distinct(self, numbers: Iterable[int]) -> set[int]:
        listed = list(numbers)
        distinct = set(listed)
        if len(distinct) != len(listed):
            raise PoolError(f"{self._name}: a number is given twice in {sorted(listed)}")
        return distinct


class BlockPool(NumberPool):
    """KV blocks, taken by the number of tokens that they must hold."""

    def __init__(self, capacity: int, block_tokens: int) -> None:
        super().__init__("KV blocks", capacity)
        self.block_tokens = block_tokens

    def take_for(self, tokens: int, *, leased: bool = False) -> tuple[int, ...]:
        """Take the blocks for `tokens` tokens, all or none; see `take`."""
        return self.take(-(-tokens // self.block_tokens), leased=leased)

    @property
    def free_tokens(self) -> int:
        """Tokens that the free blocks hold."""
        return self.accounts.free * self.block_tokens

    @property
    def total_tokens(self) -> int:
        """Tokens that all blocks hold."""
        return self.accounts.capacity * self.block_tokens


class SlotPool(NumberPool):
    """State slots: each request holds one, whether the model has Mamba layers or not."""

    def __init__(self, capacity: int) -> None:
        super().__init__("state slots", capacity)
