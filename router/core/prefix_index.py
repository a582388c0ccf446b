"""Which worker has how much of a prompt: an index of cached blocks and states, fed by workers.

A radix index: chained hashes make the name of a block stand for the whole prefix that it ends, so
no edges are stored. A worker that lets go of a block lets go of all that follow it, so whoever has
the last block of a prefix has the others. A hybrid model resumes only where a worker has the KV
blocks of a prefix *and* a Mamba state after it, so both are indexed, and only both are a hit.

Bounded: entries live in two generations. Looking at an entry moves it to the young one; when that
is full, the old one is dropped and the young one becomes old. So what was used least recently goes
first, at no cost for keeping an order. Workers are bits of a number, and equal sets of workers are
one object: an entry costs the key, the slot in a dict and a reference: about 120 bytes.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

from router.core.events import CacheChanged
from router.core.prefixes import PrefixKeys

# A prompt that is cached up to so many places is not looked at any further.
_MOST_LEVELS = 8
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

    def among(self, names: Sequence[int], others: Container[int]) -> list[int]:
        """Places of the names that are here or among `others`."""
        young, old = self._young, self._old
        return [
            place
            for place, name in enumerate(names)
            if name in young or name in old or name in others
        ]

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


class Hits:
    """How much of one prompt is cached where: (tokens, workers that have no more), most first.

    A system prompt that all share is cached on every worker, so they are named only as needed.
    """

    __slots__ = ("_bits", "_levels", "_start", "_workers")

    def __init__(
        self,
        levels: Sequence[tuple[int, int]],
        bits: Mapping[str, int],
        workers: Mapping[int, str],
        start: int = 0,
    ) -> None:
        """`start` is any number of the prompt: different prompts begin with different workers."""
        self._levels = levels
        self._bits = bits
        self._workers = workers
        self._start = start

    def __bool__(self) -> bool:
        return bool(self._levels)

    def tokens(self, worker_id: str) -> int:
        """Tokens of the prompt that a worker has."""
        bit = self._bits.get(worker_id, 0)
        for tokens, workers in self._levels:
            if workers & bit:
                return tokens
        return 0

    def most(self, count: int) -> list[str]:
        """Up to so many workers that have most of it."""
        found: list[str] = []
        for _, new in self._levels:
            # Those from `start` on first, so that not always the same ones are found.
            low = (1 << self._start % new.bit_length()) - 1
            for bits in (new & ~low, new & low):
                while bits:
                    if len(found) == count:
                        return found
                    lowest = bits & -bits
                    bits ^= lowest
                    name = self._workers.get(lowest.bit_length() - 1)
                    if name is not None:
                        found.append(name)
        return found


NO_HITS = Hits((), {}, {})
_NO_TAIL = (0,)


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

    @property
    def blocks(self) -> int:
        """Names of blocks that are indexed."""
        return len(self._blocks)

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

    def match(self, prefix: PrefixKeys) -> Hits:
        """How much of a prompt workers need not read."""
        block_tokens = self.block_tokens
        if prefix.block_tokens != block_tokens or not self._live:
            return NO_HITS
        names, states, tails = prefix.names, self._states, self._tails
        most = len(prefix.token_ids) - 1  # one token is always read, for its logits
        blocks, live = self._blocks, self._live
        levels: list[tuple[int, int]] = []
        seen = 0  # workers of deeper levels
        for count in reversed(states.among(names, tails)):
            name = names[count]
            holders = blocks.get(name) & live if count else live
            if not holders:
                continue
            lengths = (*sorted(tails[name], reverse=True), 0) if name in tails else _NO_TAIL
            for tail in lengths:
                tokens = count * block_tokens + tail
                if not 0 < tokens <= most:
                    continue
                found = states.get(prefix.tail_name(count, tail) if tail else name)
                found &= holders & ~seen
                if found:
                    seen |= found
                    levels.append((tokens, found))
            if len(levels) >= _MOST_LEVELS:
                break
        if not levels:
            return NO_HITS
        return Hits(levels, self._bits, self._workers, names[-1])

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
