"""Who holds which KV block and which state slot: numbers only, no memory.

Exists so that leaks and double frees are errors where they happen instead of wrong answers later.
One owner, the engine loop, calls everything here; nothing is locked.

A number is free, leased (set aside for state that another worker will write), quarantined (leased
for a request that has ended, while a writer may not know), allocated (at least one live request
holds it) or cached (only the prefix cache keeps it). Requests share blocks of a
common prefix, so holders are counted. Lowest numbers go first, which keeps requests contiguous
while little is in use, and contiguous blocks travel in one descriptor.
"""

from __future__ import annotations

import heapq
from collections import Counter
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
    cached: int
    quarantined: int = 0


class NumberPool:
    """Hands out the numbers 0..capacity-1 and counts who holds them."""

    def __init__(self, name: str, capacity: int) -> None:
        if capacity < 0:
            raise ValueError(f"{name}: capacity {capacity} must not be negative")
        self._name = name
        self._capacity = capacity
        self._free = list(range(capacity))  # a heap
        self._leased: set[int] = set()
        self._quarantined: set[int] = set()
        self._holders: Counter[int] = Counter()  # live requests, by number
        self._keepers: Counter[int] = Counter()  # entries of the prefix cache, by number
        self._cached: set[int] = set()  # kept, and held by no request

    @property
    def free(self) -> int:
        """Numbers that nobody has."""
        return len(self._free)

    @property
    def cached(self) -> int:
        """Numbers that only the prefix cache keeps."""
        return len(self._cached)

    @property
    def accounts(self) -> Accounts:
        """The current state of the pool, counted."""
        return Accounts(
            self._capacity,
            self.free,
            len(self._holders),
            len(self._leased),
            self.cached,
            len(self._quarantined),
        )

    def take(self, count: int, *, leased: bool = False) -> tuple[int, ...]:
        """Take `count` numbers, ascending, for one live request.

        Raises:
            OutOfMemory: fewer are free; none was taken.
        """
        if count > len(self._free):
            raise OutOfMemory(
                f"{self._name}: {count} needed, {len(self._free)} of {self._capacity} free"
            )
        numbers = tuple(heapq.heappop(self._free) for _ in range(count))
        if leased:
            self._leased.update(numbers)
        else:
            self._holders.update(numbers)
        return numbers

    def settle(self, numbers: Iterable[int]) -> None:
        """Turn leased numbers into allocated ones: what was awaited has arrived."""
        settled = self._distinct(numbers)
        if not settled <= self._leased:
            raise PoolError(f"{self._name}: not leased: {sorted(settled - self._leased)}")
        self._leased -= settled
        self._holders.update(settled)

    def quarantine(self, numbers: Iterable[int]) -> None:
        """Keep leased numbers from everybody until `end_quarantine`: somebody may write there."""
        kept = self._distinct(numbers)
        if not kept <= self._leased:
            raise PoolError(f"{self._name}: not leased: {sorted(kept - self._leased)}")
        self._leased -= kept
        self._quarantined |= kept

    def end_quarantine(self, numbers: Iterable[int]) -> None:
        """Nobody writes there any more: the numbers are free."""
        freed = self._distinct(numbers)
        if not freed <= self._quarantined:
            missing = sorted(freed - self._quarantined)
            raise PoolError(f"{self._name}: not quarantined: {missing}")
        self._quarantined -= freed
        self._settle_unheld(freed)

    def share(self, numbers: Iterable[int]) -> None:
        """Let one more live request hold numbers that are in use or cached."""
        shared = self._distinct(numbers)
        self._require_in_use(shared, "shared")
        self._cached -= shared
        self._holders.update(shared)

    def release(self, numbers: Iterable[int]) -> None:
        """A live request lets go of numbers that it held or leased, of all or of none."""
        returned = self._distinct(numbers)
        missing = {n for n in returned if n not in self._holders and n not in self._leased}
        if missing:
            raise PoolError(f"{self._name}: not held, so not released: {sorted(missing)}")
        self._leased -= returned
        for number in returned:
            self._decrement(self._holders, number)
        self._settle_unheld(returned)

    def keep(self, numbers: Iterable[int]) -> None:
        """Let one more entry of the prefix cache keep numbers that are in use or cached."""
        kept = self._distinct(numbers)
        self._require_in_use(kept, "kept")
        self._keepers.update(kept)

    def drop(self, numbers: Iterable[int]) -> None:
        """An entry of the prefix cache lets go of numbers that it kept."""
        dropped = self._distinct(numbers)
        missing = {number for number in dropped if number not in self._keepers}
        if missing:
            raise PoolError(f"{self._name}: not kept, so not dropped: {sorted(missing)}")
        for number in dropped:
            self._decrement(self._keepers, number)
        self._cached -= dropped
        self._settle_unheld(dropped)

    def audit(self) -> None:
        """Raise PoolError unless every number is in exactly one state."""
        everything = [
            *self._free,
            *self._leased,
            *self._quarantined,
            *self._holders,
            *self._cached,
        ]
        if sorted(everything) != list(range(self._capacity)) or not self._cached <= set(
            self._keepers
        ):
            raise PoolError(
                f"{self._name}: {self.accounts} do not cover 0..{self._capacity - 1} exactly once"
            )

    def holds(self, numbers: Iterable[int]) -> Counter[int]:
        """How many live requests hold or lease each of `numbers`; for audits."""
        return Counter({n: self._holders[n] + (n in self._leased) for n in numbers})

    def _settle_unheld(self, numbers: Iterable[int]) -> None:
        """Numbers that no request holds any more are cached if kept, else free."""
        for number in numbers:
            if number in self._holders:
                continue
            if number in self._keepers:
                self._cached.add(number)
            else:
                heapq.heappush(self._free, number)

    @staticmethod
    def _decrement(counter: Counter[int], number: int) -> None:
        if counter[number] > 1:
            counter[number] -= 1
        else:
            del counter[number]

    def _require_in_use(self, numbers: set[int], doing: str) -> None:
        missing = {n for n in numbers if n not in self._holders and n not in self._cached}
        if missing:
            raise PoolError(f"{self._name}: not in use, so not {doing}: {sorted(missing)}")

    def _distinct(self, numbers: Iterable[int]) -> set[int]:
        listed = list(numbers)
        distinct = set(listed)
        if len(distinct) != len(listed):
            raise PoolError(f"{self._name}: a number is given twice in {sorted(listed)}")
        return distinct
