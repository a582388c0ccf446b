"""One decode step over all ready requests: draft, verify, choose, and note what was accepted.

The MTP block proposes, the model disposes: at each position the token is the one that decoding
without drafts would have chosen, and a draft only saves the step in which it would have been fed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as ListOf

import torch

from workers.engine.native.draft_length import DraftLength
from workers.engine.native.runner import ModelRunner
from workers.engine.native.scheduler import Scheduler
from workers.engine.native.sequence import Sequence
from workers.engine.sampling.logprobs import Chosen
from workers.engine.sampling.verify import choose_windows

# Steps without drafts leave positions that the MTP block has not seen. It catches up with this
# many when drafting begins again; older ones stay blank, which costs acceptance and nothing else.
_MOST_UNDRAFTED = 16


class Decoder:
    """Owns how decode steps are made. `most_draft_tokens` 0 means that nothing is drafted."""

    def __init__(
        self,
        runner: ModelRunner,
        scheduler: Scheduler,
        lengths: DraftLength,
        clock_s: Callable[[], float],
    ) -> None:
        self._runner = runner
        self._scheduler = scheduler
        self._lengths = lengths
        self._clock_s = clock_s

    @property
    def most_draft_tokens(self) -> int:
        """The longest draft of any step."""
        return self._lengths.most

    def begin(self, sequence: Sequence) -> None:
        """Let a request decode, from the hidden state that reading its prompt ended with."""
        if self.most_draft_tokens:
            sequence.undrafted = self._runner.carried_hidden(sequence)
        self._scheduler.decode(sequence)

    def rows(self) -> tuple[list[Sequence], int]:
        """Who decodes in the next step, and the longest draft among them."""
        ready = self._scheduler.decoding
        draft_tokens = self._lengths.choose(ready) if ready and self.most_draft_tokens else 0
        rows = self._scheduler.decode_rows(draft_tokens)
        # Neighbouring slots are updated where they lie, as one.
        return sorted(rows, key=self._runner.slot), draft_tokens

    def step(
        self, rows: ListOf[Sequence], draft_tokens: int
    ) -> Iterator[tuple[Sequence, list[Chosen]]]:
        """Make one step; yields each request with its new tokens, one at least."""
        began_s = self._clock_s()
        if draft_tokens:
            drafts, hidden, logits = self._runner.speculate(rows, draft_tokens)
            # The last token of an answer needs no draft after it.
            drafts = [draft[: row.room - 1] for row, draft in zip(rows, drafts, strict=True)]
        else:
            drafts = [[] for _ in rows]
            hidden, logits = self._runner.verify(rows)
        windows = choose_windows(logits, drafts, [row.sampling for row in rows])
        drafted, accepted = [0] * draft_tokens, [0] * draft_tokens
        for index, (row, draft, chosen) in enumerate(zip(rows, drafts, windows, strict=True)):
            kept = max(len(chosen) - 1, 0)
            row.speculation.add(len(draft), kept)
            for position in range(min(len(chosen), len(draft))):
                drafted[position] += 1
            for position in range(kept):
                accepted[position] += 1
            row.context_tokens += len(chosen)
            row.pending = len(chosen)
            if self.most_draft_tokens:
                seen = hidden[index, : len(chosen)]
                if row.undrafted is not None:
                    seen = torch.cat([row.undrafted, seen])[-_MOST_UNDRAFTED:]
                row.undrafted = seen
        if self.most_draft_tokens:
            self._lengths.observe(
                len(rows), draft_tokens, self._clock_s() - began_s, drafted, accepted
            )
        yield from zip(rows, windows, strict=True)
