"""Incremental text for tokenizers that are not byte-level, such as SentencePiece ones.

There a token's text depends on its neighbours (spaces, byte fallback), so a short window of
tokens is decoded again at each step and the new part of its text is what the step added.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

_REPLACEMENT = "\ufffd"
# The last character of some tokens may lack up to three of its four bytes.
_LONGEST_CHARACTER_TOKENS = 4
# What is still broken after so many tokens is no character and stays broken.
_HELD_TOKENS = 12


class GeneralDecoder:
    """The text of one request."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # Tokens whose text is out but shapes that of the next, then those whose text is not out.
        self._context: list[int] = []
        self._held: list[int] = []

    def feed(self, token_ids: Sequence[int]) -> str:
        """The characters that these tokens complete."""
        self._held.extend(token_ids)
        whole = len(self._held)
        for used in range(whole, max(0, whole - _LONGEST_CHARACTER_TOKENS), -1):
            text = self._text_of(used)
            if text and not text.endswith(_REPLACEMENT):
                return self._let_out(used, text)
        return self.flush() if whole > _HELD_TOKENS else ""

    def flush(self) -> str:
        """The text of the tokens that are still held, complete or not."""
        used = len(self._held)
        return self._let_out(used, self._text_of(used))

    def _text_of(self, used: int) -> str:
        """What the first `used` held tokens add to the text of the context."""
        before = self._tokenizer.decode(self._context, skip_special_tokens=True)
        tokens = [*self._context, *self._held[:used]]
        return self._tokenizer.decode(tokens, skip_special_tokens=True)[len(before) :]

    def _let_out(self, used: int, text: str) -> str:
        self._context, self._held = self._held[:used], self._held[used:]
        return text
