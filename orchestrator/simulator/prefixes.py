"""Which prefixes of prompts one worker has cached: blocks by name, the least recently used go.

A name stands for a whole prefix (the traces' `hash_ids` are chained), so a prompt's cached part is
the longest run of known names at its beginning. Each block is taken to have a state after it, as
an engine with a checkpoint at every block has.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from loadgen.traces.request import BLOCK_TOKENS as TRACE_BLOCK_TOKENS

__all__ = ["TRACE_BLOCK_TOKENS", "PrefixCache"]


class PrefixCache:
    """The cache of one worker, of at most `most_blocks`; what changed is told to routers."""

    def __init__(self) -> None:
        self.most_blocks = 0
        self._known: OrderedDict[int, None] = OrderedDict()
        self.stored: list[int] = []
        self.removed: list[int] = []

    def longest(self, names: Sequence[int], prompt_tokens: int) -> int:
        """Tokens of a prompt that need not be read; at least one is, for its logits.

        `names[i]` is the prefix of i blocks.
        """
        known, count = self._known, 0
        for name in names[1:]:
            if name not in known:
                break
            known.move_to_end(name)
            count += 1
        while count and count * TRACE_BLOCK_TOKENS >= prompt_tokens:
            count -= 1
        return count * TRACE_BLOCK_TOKENS

    def remember(self, names: Sequence[int]) -> None:
        """A prompt was read."""
        known = self._known
        for name in names[1:]:
            if name in known:
                known.move_to_end(name)
            else:
                known[name] = None
                self.stored.append(name)
        while len(known) > self.most_blocks:
            self.removed.append(known.popitem(last=False)[0])

    def take_changes(self) -> tuple[list[int], list[int]]:
        """(stored, removed) since the last time; what came and went is in neither."""
        stored, removed = self.stored, self.removed
        self.stored, self.removed = [], []
        if removed and stored:
            both = set(stored) & set(removed)
            stored = [name for name in stored if name not in both]
            removed = [name for name in removed if name not in both]
        return stored, removed
