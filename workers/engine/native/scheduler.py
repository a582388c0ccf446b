"""What runs in the next step: who decodes, who reads how much of a prompt, and who must give way.

Decode rows always run; prompts share what they leave of the step's token budget, and at least a
part of it, so neither starves the other. A request that needs a block when none is left
takes it from the youngest of the lowest class, which is read anew later and never failed.
Pure but for the memory accounts that it is given.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator

from workers.engine.native.sequence import Sequence, Stage
from workers.state.memory import Hit, OutOfMemory, StateMemory

# Of the budget of a step, what prompts get even when decode rows would take all of it.
_LEAST_PREFILL_SHARE = 0.25


class Scheduler:
    """Owns the order of requests. Cached prefixes are cut at multiples of `checkpoint_tokens`."""

    def __init__(self, memory: StateMemory, step_tokens: int, checkpoint_tokens: int) -> None:
        self._memory = memory
        self._step_tokens = step_tokens
        self._checkpoint_tokens = checkpoint_tokens
        self._waiting: list[Sequence] = []
        self._prefilling: list[Sequence] = []
        self._decoding: dict[int, Sequence] = {}
        self.preemptions = 0

    @property
    def busy(self) -> bool:
        """Whether the next step has something to compute."""
        return bool(self._waiting or self._prefilling or self._decoding)

    @property
    def decoding(self) -> int:
        """How many requests are making tokens."""
        return len(self._decoding)

    def wait(self, sequence: Sequence) -> None:
        """Queue a request that holds no memory."""
        sequence.stage = Stage.WAITING
        bisect.insort(self._waiting, sequence, key=lambda waiting: waiting.urgency)

    def decode(self, sequence: Sequence) -> None:
        """From the next step on, a request makes tokens."""
        sequence.stage = Stage.DECODING
        self._decoding[sequence.item.key] = sequence

    def remove(self, sequence: Sequence) -> None:
        """Take a request out, wherever it is."""
        if sequence.stage is Stage.WAITING:
            self._waiting.remove(sequence)
        elif sequence.stage is Stage.PREFILLING:
            self._prefilling.remove(sequence)
        elif sequence.stage is Stage.DECODING:
            del self._decoding[sequence.item.key]

    def decode_rows(self, draft_tokens: int) -> list[Sequence]:
        """Requests that decode in this step, each with memory for its whole window.

        Whoever had to give way for that is waiting again.
        """
        rows: list[Sequence] = []
        for sequence in sorted(self._decoding.values(), key=lambda row: row.urgency):
            if sequence.stage is Stage.DECODING and self._grow(sequence, draft_tokens + 1):
                rows.append(sequence)
        return rows

    def chunks(self, decode_tokens: int) -> Iterator[tuple[Sequence, int, Hit | None]]:
        """Prompts to read in this step: the request, how many tokens, and a hit if it starts.

        Each must be read before the next is asked for. A chunk ends where a prefix may be cached.
        """
        least = int(self._step_tokens * _LEAST_PREFILL_SHARE)
        budget = max(self._step_tokens - decode_tokens, least)
        for sequence in list(self._prefilling):
            if budget > 0:
                tokens = self._chunk_tokens(sequence, budget)
                budget -= tokens
                yield sequence, tokens, None
        while budget > 0 and self._waiting:
            sequence = self._waiting[0]
            try:
                _, hit = self._memory.allocate_prompt(
                    sequence.item.key, sequence.to_read, len(sequence.prompt)
                )
            except OutOfMemory:
                return
            del self._waiting[0]
            sequence.stage = Stage.PREFILLING
            sequence.context_tokens = 0 if hit is None else hit.tokens
            self._prefilling.append(sequence)
            tokens = self._chunk_tokens(sequence, budget)
            budget -= tokens
            yield sequence, tokens, hit

    def _chunk_tokens(self, sequence: Sequence, budget: int) -> int:
        to_boundary = self._checkpoint_tokens - sequence.context_tokens % self._checkpoint_tokens
        return min(budget, sequence.unread_tokens, to_boundary)

    def _grow(self, sequence: Sequence, window_tokens: int) -> bool:
        """Make room for a window; False when the request itself had to give way."""
        while True:
            try:
                self._memory.grow(sequence.item.key, sequence.context_tokens + window_tokens)
            except OutOfMemory:
                # What is being handed off may be read by the network.
                reading = (row for row in self._prefilling if not row.handing_off)
                writing = (row for row in self._decoding.values() if not row.handing_off)
                victim = max([*writing, *reading], key=lambda row: row.urgency)
                self.preempt(victim)
                if victim is sequence:
                    return False
            else:
                return True

    def preempt(self, sequence: Sequence) -> None:
        """Take a request's memory away; it waits to be read anew."""
        self.preemptions += 1
        self.remove(sequence)
        self._memory.free(sequence.item.key)
        sequence.context_tokens = sequence.pending = 0
        sequence.undrafted = None
        self.wait(sequence)
