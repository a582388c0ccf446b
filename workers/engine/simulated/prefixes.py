"""Which prompts a simulated engine has read before: no state, only the digests of prefixes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from workers.engine.simulated.text import context_of


class Prefixes:
    """Digests of prefixes at multiples of `checkpoint_tokens` and at prompts' ends, the `most`
    least recently used ones forgotten; as the native engine keeps its checkpoints."""

    def __init__(self, checkpoint_tokens: int, most: int) -> None:
        self._checkpoint_tokens = checkpoint_tokens
        self._most = most
        # Lengths by digest, and how many prefixes of each length there are.
        self._known: OrderedDict[tuple[int, int], None] = OrderedDict()

    def longest(self, prompt: Sequence[int]) -> int:
        """Tokens of the longest known prefix that leaves at least one token to read."""
        if not self._known:
            return 0
        for length in sorted({length for length, _ in self._known if length < len(prompt)})[::-1]:
            key = (length, context_of(prompt[:length]))
            if key in self._known:
                self._known.move_to_end(key)
                return length
        return 0

    def remember(self, prompt: Sequence[int]) -> None:
        """The whole prompt has been read."""
        if self._most == 0:
            return
        ends = range(self._checkpoint_tokens, len(prompt), self._checkpoint_tokens)
        for length in (*ends, len(prompt)):
            key = (length, context_of(prompt[:length]))
            self._known[key] = None
            self._known.move_to_end(key)
        while len(self._known) > self._most:
            self._known.popitem(last=False)
