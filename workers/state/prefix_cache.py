"""Which prefixes of earlier prompts can be reused, and which were least recently.

A hybrid model resumes a prompt only from a place where both its KV and its Mamba state are known,
so the unit is a checkpoint: a number of tokens, the KV blocks that hold them, and a slot with a
copy of the conv and SSM state after them. A block without a checkpoint after it is of no use, so
blocks are kept by checkpoints and by nothing else. What comes and goes is noted for routers, which
send requests where their prefix is. Pure: numbers and hashes, no memory.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from workers.prefix_hash import chain_hashes, extend, name


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """State after `tokens` tokens. Its last block is a private copy when it is partly filled."""

    tokens: int
    blocks: tuple[int, ...]
    slot: int
    chain: bytes  # hash of all full blocks
    tail: tuple[int, ...]  # the tokens after them

    @property
    def state_name(self) -> int:
        """What messages call the state after exactly these tokens."""
        return name(extend(self.chain, self.tail) if self.tail else self.chain)


@dataclass(frozen=True, slots=True)
class CachedState:
    """A checkpoint as others know it; `chain` names its full blocks."""

    name: int
    chain: int
    tokens: int


@dataclass(slots=True)
class CacheChanges:
    """What came into the cache and what went, by name, in no order: nothing is in both."""

    stored_blocks: list[int] = field(default_factory=list)
    removed_blocks: list[int] = field(default_factory=list)
    stored_states: list[CachedState] = field(default_factory=list)
    removed_states: list[int] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(
            self.stored_blocks or self.removed_blocks or self.stored_states or self.removed_states
        )


@dataclass(frozen=True, slots=True)
class PrefixKey:
    """What a checkpoint after some tokens is filed under, and the names of its full blocks."""

    chain: bytes
    tail: tuple[int, ...]
    blocks: tuple[int, ...]


class PrefixCache:
    """Checkpoints by the tokens that they cover, in order of last use."""

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._by_chain: dict[bytes, dict[tuple[int, ...], Checkpoint]] = {}
        self._by_use: OrderedDict[Checkpoint, None] = OrderedDict()  # oldest first
        self._blocks_of: dict[Checkpoint, tuple[int, ...]] = {}
        self._keepers: Counter[int] = Counter()  # checkpoints by block name
        # What is cached, and what was when changes were last taken.
        self._states: dict[int, CachedState] = {}
        self._touched_blocks: dict[int, bool] = {}  # whether it was there before
        self._touched_states: dict[int, bool] = {}

    def __len__(self) -> int:
        return len(self._by_use)

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """All of them, the least recently used first."""
        return tuple(self._by_use)

    def find(self, token_ids: Sequence[int], most_tokens: int) -> Checkpoint | None:
        """The longest checkpoint of at most `most_tokens` tokens that `token_ids` begin with."""
        hashes = chain_hashes(token_ids, self._block_tokens)
        for full_blocks in range(len(hashes) - 1, -1, -1):
            begin = full_blocks * self._block_tokens
            best: Checkpoint | None = None
            for tail, checkpoint in self._by_chain.get(hashes[full_blocks], {}).items():
                fits = checkpoint.tokens <= most_tokens
                if fits and tuple(token_ids[begin : begin + len(tail)]) == tail:
                    best = max(best or checkpoint, checkpoint, key=lambda found: found.tokens)
            if best is not None:
                return best
        return None

    def key(self, token_ids: Sequence[int]) -> PrefixKey:
        """What a checkpoint after exactly these tokens is filed under."""
        full = len(token_ids) - len(token_ids) % self._block_tokens
        chains = chain_hashes(token_ids, self._block_tokens)
        return PrefixKey(chains[-1], tuple(token_ids[full:]), tuple(map(name, chains[1:])))

    def has(self, key: PrefixKey) -> bool:
        """Whether there is a checkpoint after exactly these tokens."""
        return key.tail in self._by_chain.get(key.chain, {})

    def add(self, checkpoint: Checkpoint, blocks: tuple[int, ...]) -> None:
        """File a checkpoint, whose full blocks have these names, as the most recently used.

        There must be none for its tokens.
        """
        self._by_chain.setdefault(checkpoint.chain, {})[checkpoint.tail] = checkpoint
        self._by_use[checkpoint] = None
        self._blocks_of[checkpoint] = blocks
        for block in blocks:
            self._touched_blocks.setdefault(block, block in self._keepers)
            self._keepers[block] += 1
        state = CachedState(checkpoint.state_name, name(checkpoint.chain), checkpoint.tokens)
        self._touched_states.setdefault(state.name, state.name in self._states)
        self._states[state.name] = state

    def touch(self, checkpoint: Checkpoint) -> None:
        """Note that a checkpoint was used."""
        self._by_use.move_to_end(checkpoint)

    def pop_oldest(self) -> Checkpoint | None:
        """Forget the least recently used checkpoint and return it."""
        if not self._by_use:
            return None
        checkpoint, _ = self._by_use.popitem(last=False)
        tails = self._by_chain[checkpoint.chain]
        del tails[checkpoint.tail]
        if not tails:
            del self._by_chain[checkpoint.chain]
        for block in self._blocks_of.pop(checkpoint):
            self._touched_blocks.setdefault(block, True)
            self._keepers[block] -= 1
            if not self._keepers[block]:
                del self._keepers[block]
        self._touched_states.setdefault(checkpoint.state_name, True)
        del self._states[checkpoint.state_name]
        return checkpoint

    def take_changes(self) -> CacheChanges:
        """What came and went since the last call; what did both is left out."""
        changes = CacheChanges()
        for block, was_there in self._touched_blocks.items():
            if (block in self._keepers) != was_there:
                (changes.removed_blocks if was_there else changes.stored_blocks).append(block)
        for state, was_there in self._touched_states.items():
            if was_there and state not in self._states:
                changes.removed_states.append(state)
            elif not was_there and state in self._states:
                changes.stored_states.append(self._states[state])
        self._touched_blocks.clear()
        self._touched_states.clear()
        return changes
