"""Which worker has how much of a prompt: an index of cached blocks and states, fed by workers.

A radix index: chained hashes make the name of a block stand for the whole prefix that it ends, so
walking a prompt block by block walks down the tree without storing edges. A hybrid model resumes
only where a worker has all KV blocks of a prefix *and* a Mamba state after it, so both are indexed
and only both together are a hit.

Bounded: entries live in two generations. Looking at an entry moves it to the young one; when that
is full, the old one is dropped and the young one becomes old. So what was used least recently goes
first, at no cost for keeping an order. Workers are bits of a number, and equal sets of workers are
one object: an entry costs the key, the slot in a dict and a reference, about 75 bytes.
"""

from __future__ import annotations

from collections.abc import Iterable

from router.core.events import CacheChanged
from router.core.prefixes import PrefixKeys

# Workers that have gone are cleaned out of all entries when there are so many of them.
_MOST_DEAD = 256


class Generations:
    """Name -> set of workers, as bits; at most `limit` names, the least recently used dropped."""

    __slots__ = ("_half", "_old", "_sets", "_young")

    def __init__(self, limit: int) -> None:
        self._half = max(1, limit // 2)
        self._young: dict[int, int] = {}
        self._old: dict[int, int] = {}
        self._sets: dict[int, int] = {}  # one object for each set

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def get(self, name: int) -> int:
        """The workers that have it; looking keeps it alive."""
        workers = self._young.get(name)
        if workers is not None:
            return workers
        workers = self._old.pop(name, None)
        if workers is None:
            return 0
        self._put(name, workers)
        return workers

    def add(self, name: int, bit: int) -> None:
        """One more worker has it."""
        young = self._young
        workers = young.get(name)
        if workers is None:
            workers = self._old.pop(name, 0)
        elif workers & bit:
            return
        self._put(name, workers | bit)

    def discard(self, name: int, bit: int) -> None:
        """One worker less has it."""
        for entries in (self._young, self._old):
            workers = entries.get(name)
            if workers is not None:
                if workers == bit:
                    del entries[name]
                elif workers & bit:
                    entries[name] = self._shared(workers ^ bit)
                return

    def keep_only(self, bits: int) -> None:
        """Clean out all workers but these."""
        for entries in (self._young, self._old):
            for name, workers in list(entries.items()):
                if workers & ~bits:
                    if workers & bits:
                        entries[name] = self._shared(workers & bits)
                    else:
                        del entries[name]

    def _put(self, name: int, workers: int) -> None:
        young = self._young
        if len(young) >= self._half and name not in young:
            self._old, self._young = young, {}
            young = self._young
            young[name] = self._shared(workers)
            self._sets = {}
            return
        young[name] = self._shared(workers)

    def _shared(self, workers: int) -> int:
        return self._sets.setdefault(workers, workers)


class PrefixIndex:
    """Cached prefixes of all workers. `changes` counts what was taken in, for whoever caches."""

    def __init__(self, limit: int) -> None:
        """At most `limit` names of blocks, and a quarter as many of states."""
        self._blocks = Generations(limit)
        self._states = Generations(max(2, limit // 4))
        # By the name of a state's full blocks: lengths of what comes after them.
        self._tails: dict[int, tuple[int, ...]] = {}
        self._most_tails = max(2, limit // 4)
        self._bits: dict[str, int] = {}
        self._workers: dict[int, str] = {}
        self._live = 0
        self._dead: list[int] = []  # numbers of workers that have gone, still in some entries
        self._free: list[int] = []  # and of those that are in none any more
        self.block_tokens = 0  # 0: no worker has said anything
        self.changes = 0

    def __len__(self) -> int:
        return len(self._blocks) + len(self._states)

    def apply(self, event: CacheChanged) -> None:
        """Take in what a worker says; ignored when its blocks are of another size."""
        if not self.block_tokens or (event.block_tokens and not self._bits):
            self.block_tokens = event.block_tokens
        if event.block_tokens != self.block_tokens or not self.block_tokens:
            return
        self.changes += 1
        if event.reset:
            self.forget(event.worker_id)
        bit = self._bit(event.worker_id)
        for name in event.removed_blocks:
            self._blocks.discard(name, bit)
        for name in event.removed_states:
            self._states.discard(name, bit)
        for name in event.stored_blocks:
            self._blocks.add(name, bit)
        for name, chain, tokens in event.stored_states:
            self._states.add(name, bit)
            tail = tokens % self.block_tokens
            if tail:
                self._add_tail(chain, tail)

    def forget(self, worker_id: str) -> None:
        """A worker has gone, or begins anew: nothing that it said holds any more."""
        bit = self._bits.pop(worker_id, 0)
        if not bit:
            return
        self.changes += 1
        number = bit.bit_length() - 1
        del self._workers[number]
        self._live &= ~bit
        self._dead.append(number)
        if len(self._dead) > _MOST_DEAD:
            self._blocks.keep_only(self._live)
            self._states.keep_only(self._live)
            self._free.extend(self._dead)
            self._dead.clear()

    def match(self, prefix: PrefixKeys) -> dict[str, int]:
        """Tokens that each worker need not read; workers without any are left out."""
        block_tokens = self.block_tokens
        found: dict[str, int] = {}
        if prefix.block_tokens != block_tokens or not self._live:
            return found
        most = len(prefix.token_ids) - 1  # one token is always read, for its logits
        holders = self._live  # of all blocks so far
        hits: list[tuple[int, int]] = []
        blocks, states, tails = self._blocks, self._states, self._tails
        for count, name in enumerate(prefix.names):
            if count:
                holders &= blocks.get(name)
                if not holders:
                    break
                at_block = states.get(name) & holders
                if at_block and count * block_tokens <= most:
                    hits.append((count * block_tokens, at_block))
            for tail in tails.get(name, ()):
                tokens = count * block_tokens + tail
                if tokens <= most:
                    at_tail = states.get(prefix.tail_name(count, tail)) & holders
                    if at_tail:
                        hits.append((tokens, at_tail))
        hits.sort()
        for tokens, workers in reversed(hits):
            for worker_id in self._named(workers):
                found.setdefault(worker_id, tokens)
        return found

    def _named(self, bits: int) -> Iterable[str]:
        while bits:
            lowest = bits & -bits
            yield self._workers[lowest.bit_length() - 1]
            bits ^= lowest

    def _bit(self, worker_id: str) -> int:
        bit = self._bits.get(worker_id)
        if bit is None:
            number = self._free.pop() if self._free else len(self._workers) + len(self._dead)
            bit = self._bits[worker_id] = 1 << number
            self._workers[number] = worker_id
            self._live |= bit
        return bit

    def _add_tail(self, chain: int, tail: int) -> None:
        known = self._tails.pop(chain, ())
        if len(self._tails) >= self._most_tails:
            del self._tails[next(iter(self._tails))]
        self._tails[chain] = known if tail in known else (*known[-7:], tail)
