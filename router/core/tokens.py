"""Puts the tokens of one request in order: prefill's first one and decode's come over two streams.

Decode may be faster than prefill's message with token 0, so its tokens wait for that one. Anything
else that does not fit is a fault of a worker and is refused: a client must never see a gap.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple


class TokenLogprob(NamedTuple):
    """The log-probability of one token, and the most likely ones in its place with theirs."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True, init=False)
class Chunk:
    """Tokens with consecutive indexes."""

    first_index: Final[int]
    token_ids: Final[Sequence[int]]
    logprobs: Final[Sequence[TokenLogprob]]

    def __init__(
        self,
        first_index: int,
        token_ids: Sequence[int],
        logprobs: Sequence[TokenLogprob],
    ) -> None:
        self.first_index = first_index
        self.token_ids = token_ids
        self.logprobs = logprobs


class TokenGapError(Exception):
    """A worker sent tokens that leave a gap, or more than were asked for."""


@dataclass(slots=True, init=False, eq=False)
class TokenOrder:
    """`delivered` tokens, `token_ids`, have been handed on; those that came early wait for token 0.

    They are kept so that another worker can go on from them.
    """

    max_tokens: int
    delivered: int
    token_ids: array[int]
    early_ids: list[int]
    early_logprobs: list[TokenLogprob]

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.delivered = 0
        self.token_ids = array("I")
        self.early_ids = []
        self.early_logprobs = []

    def take(self, chunk: Chunk) -> Sequence[Chunk]:
        """What can be handed on now; tokens seen before are left out.

        Raises TokenGapError when the chunk cannot belong to this request.
        """
        first, token_ids, logprobs = chunk.first_index, chunk.token_ids, chunk.logprobs
        if first < self.delivered:
            skip = self.delivered - first
            first, token_ids, logprobs = self.delivered, token_ids[skip:], logprobs[skip:]
            chunk = Chunk(first, token_ids, logprobs)
        if not token_ids:
            return ()
        if first + len(token_ids) > self.max_tokens:
            raise TokenGapError(
                f"token {first + len(token_ids) - 1} where {self.max_tokens} were asked for"
            )
        if first == self.delivered:
            self.delivered += len(token_ids)
            self.token_ids.extend(token_ids)
            if not self.early_ids:
                return (chunk,)
            early = Chunk(1, self.early_ids, self.early_logprobs)
            self.forget_early()
            return (chunk, *self.take(early))
        if self.delivered == 0 and first == 1 + len(self.early_ids):
            self.early_ids.extend(token_ids)
            self.early_logprobs.extend(logprobs)
            return ()
        raise TokenGapError(f"token {first} where token {self.delivered} was due")

    def forget_early(self) -> None:
        """The attempt that sent the early ones is over: another will send them again."""
        self.early_ids, self.early_logprobs = [], []
