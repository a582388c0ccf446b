"""Incremental text for tokenizers that are not byte-level, such as SentencePiece ones.

There a token's text depends on its neighbours (spaces, byte fallback), so a short window of
tokens is decoded again at each step and the new part of its text is what the step added.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

_REPLACEMENT = "\ufffd"
# No character is spread over more tokens than this: what is still broken then stays broken.
_LONGEST_CHARACTER_TOKENS = 12


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
        text = self._new_text()
        if text.endswith(_REPLACEMENT) and len(self._held) <= _LONGEST_CHARACTER_TOKENS:
            return ""
        if not text:
            return ""
        self._context, self._held = self._held, []
        return text

    def flush(self) -> str:
        """The text of the tokens that are still held, complete or not."""
        text = self._new_text()
        self._context, self._held = self._held, []
        return text

    def _new_text(self) -> str:
        before = self._tokenizer.decode(self._context, skip_special_tokens=True)
        after = self._tokenizer.decode([*self._context, *self._held], skip_special_tokens=True)
        return after[len(before) :]
