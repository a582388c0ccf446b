"""Which prompts a simulated engine has read before: no state, only the names of prefixes.

The index is the native engine's, so what routers hear of it, and what they can do with it, is the
same.
"""

from __future__ import annotations

from collections.abc import Sequence

from workers.prefix_hash import chain_hashes, name
from workers.state.prefix_cache import CacheChanges, Checkpoint, PrefixCache, PrefixKey


class Prefixes:
    """Prefixes at multiples of `checkpoint_tokens` and at prompts' ends, the `most` least recently
    used ones forgotten."""

    def __init__(self, block_tokens: int, checkpoint_tokens: int, most: int) -> None:
        self._block_tokens = block_tokens
        self._checkpoint_tokens = checkpoint_tokens
        self._most = most
        self._cache = PrefixCache(block_tokens)

    def longest(self, prompt: Sequence[int]) -> int:
        """Tokens of the longest known prefix that leaves at least one token to read."""
        if not len(self._cache):
            return 0
        found = self._cache.find(prompt, len(prompt) - 1)
        if found is None:
            return 0
        self._cache.touch(found)
        return found.tokens

    def remember(self, prompt: Sequence[int]) -> None:
        """The whole prompt has been read."""
        if self._most == 0:
            return
        chains = chain_hashes(prompt, self._block_tokens)
        names = tuple(map(name, chains[1:]))
        ends = range(self._checkpoint_tokens, len(prompt), self._checkpoint_tokens)
        for tokens in (*ends, len(prompt)):
            full = tokens // self._block_tokens
            tail = tuple(prompt[full * self._block_tokens : tokens])
            if self._cache.has(PrefixKey(chains[full], tail, names[:full])):
                continue
            while len(self._cache) >= self._most:
                self._cache.pop_oldest()
            self._cache.add(Checkpoint(tokens, (), 0, chains[full], tail), names[:full])

    def take_changes(self) -> CacheChanges:
        """What came and went since the last call."""
        return self._cache.take_changes()
