"""vLLM's prefix cache in the names that routers look for.

vLLM names blocks by hashes of its own, which differ with its version and settings. Its events
bring the tokens of each block, so blocks get the names of `workers.prefix_hash` here. A model
without Mamba layers resumes after any cached block: each has a state, as it were. One with Mamba
layers only where vLLM kept a state, and says so in a group of its own.
"""

from __future__ import annotations

from collections import Counter

from workers.engine.vllm.core import BlocksRemoved, BlocksStored, CacheCleared, CacheNews
from workers.prefix_hash import extend, name
from workers.state.prefix_cache import CacheChanges, CachedState


class CacheNames:
    """Translates news, and keeps what it needs to translate removals."""

    def __init__(self, block_tokens: int, hybrid: bool) -> None:
        self._block_tokens = block_tokens
        self._hybrid = hybrid
        self._chains: dict[object, tuple[bytes, int]] = {}  # hash -> chain, its tokens
        # Several blocks of vLLM may hold the same tokens.
        self._blocks: Counter[object] = Counter()
        self._states: Counter[object] = Counter()
        self._touched_blocks: dict[int, tuple[object, bool]] = {}
        self._touched_states: dict[int, tuple[object, bool]] = {}

    def take(self, news: CacheNews) -> None:
        """Take in one event."""
        match news:
            case BlocksStored():
                self._store(news)
            case BlocksRemoved(hashes, mamba):
                for block in hashes:
                    if block not in self._chains:
                        continue
                    if mamba or not self._hybrid:
                        self._count(self._states, self._touched_states, block, -1)
                    if not mamba:
                        self._count(self._blocks, self._touched_blocks, block, -1)
                    if not self._blocks[block] and not self._states[block]:
                        self._forget(block)
            case CacheCleared():
                for counted, touched in (
                    (self._blocks, self._touched_blocks),
                    (self._states, self._touched_states),
                ):
                    for block, count in list(counted.items()):
                        self._count(counted, touched, block, -count)
                for block in list(self._chains):
                    self._forget(block)

    def take_changes(self) -> CacheChanges:
        """What came and went since the last call; what did both is left out."""
        changes = CacheChanges()
        for said, (block, was_there) in self._touched_blocks.items():
            if bool(self._blocks[block]) != was_there:
                (changes.removed_blocks if was_there else changes.stored_blocks).append(said)
        for said, (block, was_there) in self._touched_states.items():
            is_there = bool(self._states[block])
            if was_there and not is_there:
                changes.removed_states.append(said)
            elif is_there and not was_there:
                _, tokens = self._chains[block]
                changes.stored_states.append(CachedState(said, said, tokens))
        self._touched_blocks.clear()
        self._touched_states.clear()
        return changes

    def _store(self, news: BlocksStored) -> None:
        if news.block_tokens != self._block_tokens:
            return  # of a kind of layer that resumes nothing
        chain, tokens = self._chains.get(news.parent, (b"", 0))
        if news.parent is not None and not tokens:
            return  # what it follows was never heard of
        for place, block in enumerate(news.hashes):
            begin = place * self._block_tokens
            chain = extend(chain, news.token_ids[begin : begin + self._block_tokens])
            tokens += self._block_tokens
            self._chains[block] = chain, tokens
            if not news.mamba:
                self._count(self._blocks, self._touched_blocks, block, 1)
            if news.mamba or not self._hybrid:
                self._count(self._states, self._touched_states, block, 1)

    def _count(
        self,
        counted: Counter[object],
        touched: dict[int, tuple[object, bool]],
        block: object,
        by: int,
    ) -> None:
        chain, _ = self._chains[block]
        touched.setdefault(name(chain), (block, bool(counted[block])))
        counted[block] = max(0, counted[block] + by)

    def _forget(self, block: object) -> None:
        del self._chains[block]
        for counted in (self._blocks, self._states):
            if not counted[block]:
                del counted[block]
