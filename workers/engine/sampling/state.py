"""What has to be remembered of one answer to choose its next token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from protos.tandem.v1.common_pb2 import (
    REASON_INVALID_ARGUMENT,
    REASON_LENGTH,
    REASON_STOP_TOKEN,
    ReasonCode,
)
from workers.engine.commands import Sampling
from workers.engine.sampling.grammar import GrammarError, GrammarMatcher
from workers.engine.sampling.penalties import TokenCounts


@dataclass(frozen=True, slots=True)
class Ending:
    """Why an answer has no further token; `detail` is for people and may be empty."""

    reason: ReasonCode.ValueType
    detail: str = ""


class SamplingState:
    """One answer so far. Whoever makes its tokens elsewhere, too, appends them here."""

    __slots__ = ("_counts", "_prompt_token_ids", "ended", "grammar", "output_token_ids", "sampling")

    def __init__(
        self,
        sampling: Sampling,
        prompt_token_ids: Sequence[int],
        grammar_matcher: GrammarMatcher | None = None,
    ) -> None:
        """The prompt is only read for a repetition penalty."""
        self.sampling = sampling
        self.grammar = grammar_matcher
        self.output_token_ids: list[int] = []
        self.ended: Ending | None = None
        self._prompt_token_ids = prompt_token_ids
        self._counts: TokenCounts | None = None

    @property
    def output_tokens(self) -> int:
        """The output index of the next token."""
        return len(self.output_token_ids)

    def append(self, token_id: int) -> None:
        """Take the next token of the answer; sets `ended` if it is the last one."""
        self.output_token_ids.append(token_id)
        if self._counts is not None:
            self._counts.add(token_id)
        if token_id in self.sampling.stop_token_ids:
            self.ended = Ending(REASON_STOP_TOKEN)
            return
        if len(self.output_token_ids) >= self.sampling.max_tokens:
            self.ended = Ending(REASON_LENGTH)
        if self.grammar is not None:
            try:
                self.grammar.accept(token_id)
            except GrammarError as error:
                self.fail(error)

    def fail(self, error: GrammarError) -> None:
        """End the answer because its grammar cannot be followed any further."""
        self.ended = Ending(REASON_INVALID_ARGUMENT, str(error))

    def counts(self, vocab_size: int, device: torch.device) -> TokenCounts:
        """Token counts for the penalties; made when first asked for, then kept up to date."""
        if self._counts is None:
            self._counts = TokenCounts(
                self._prompt_token_ids, self.output_token_ids, vocab_size, device
            )
        return self._counts
