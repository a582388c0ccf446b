"""Deals prompts of a given number of tokens: pieces of real text, or random tokens.

Text is the default. Random tokens make speculative decoding look 23 % quicker than it is and leave
experts unused (SPEED-Bench, arXiv 2604.09557), so a report says when they were used.

Every prompt begins somewhere else in the text, since a prompt that began like another would be
answered from a prefix cache. Only what a trace says is shared is shared: a hash id of Mooncake
stands for the same 512 tokens whenever it comes.
"""

from __future__ import annotations

import lzma
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from loadgen.traces.request import BLOCK_TOKENS

_TEXT = Path(__file__).parents[1] / "text" / "kjv.txt.xz"
_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0
_SPECIAL_TOKENS = 16  # low ids are control tokens in tokenizers as published
_SEED_STEP = 7919  # a prime, so that seeds begin elsewhere
# Apart, so that blocks of a trace and other prompts begin at different places.
_BLOCKS, _OTHERS = 0, 1


def shipped_text() -> str:
    """The text that comes with Tandem, public domain; see text/SOURCES.md."""
    return lzma.decompress(_TEXT.read_bytes()).decode("ascii")


class PromptSource:
    """Prompts as token ids; the same seed and number give the same prompt."""

    def __init__(
        self, text: Sequence[int] | npt.NDArray[np.int64] | None, vocab_size: int, seed: int = 0
    ) -> None:
        """`text` is tokens to cut from; None for random ones below `vocab_size`."""
        self._text = None if text is None else np.asarray(text, np.int64)
        self._vocab_size = vocab_size
        self._seed = seed
        if self._text is not None:
            if not len(self._text):
                raise ValueError("there is no text to cut prompts from")
            self._stride = _coprime_stride(len(self._text))

    @property
    def kind(self) -> str:
        """What prompts are made of."""
        return "random tokens" if self._text is None else "text"

    def fresh(self, number: int, tokens: int, turn: int = 0) -> list[int]:
        """So many tokens for a turn of a conversation, which begin like those of no other number:
        as many numbers as the text has tokens have a beginning of their own."""
        return self._cut(_OTHERS + turn, number, tokens)

    def of_blocks(self, hash_ids: Sequence[int], number: int, tokens: int) -> list[int]:
        """A prompt whose blocks of 512 tokens are named; the rest, if there is any, is fresh."""
        out: list[int] = []
        for hash_id in hash_ids:
            left = tokens - len(out)
            if left <= 0:
                break
            out += self._cut(_BLOCKS, hash_id, min(BLOCK_TOKENS, left))
        if len(out) < tokens:
            out += self.fresh(number, tokens - len(out))
        return out

    def _cut(self, kind: int, number: int, tokens: int) -> list[int]:
        if self._text is None:
            rng = np.random.default_rng((self._seed, kind, number))
            low = min(_SPECIAL_TOKENS, self._vocab_size - 1)
            drawn: list[int] = rng.integers(low, self._vocab_size, tokens).tolist()
            return drawn
        size = len(self._text)
        # Steps of a stride that has no divisor in common with the size visit every place once
        # before they come back to one.
        begin = (self._seed * _SEED_STEP + kind * (size // 3) + number * self._stride) % size
        if begin + tokens <= size:
            piece: list[int] = self._text[begin : begin + tokens].tolist()
            return piece
        places = np.arange(begin, begin + tokens) % size
        wrapped: list[int] = self._text[places].tolist()
        return wrapped


def _coprime_stride(size: int) -> int:
    stride = max(1, round(size * _GOLDEN))
    while math.gcd(stride, size) != 1:
        stride += 1
    return stride
