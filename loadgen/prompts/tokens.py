"""The tokenizer of a checkpoint folder, as far as a load generator needs one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loadgen.errors import LoadError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_TRIES = 16
_FILLING = " and"


class TextTokens:
    """Text to tokens and back."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @classmethod
    def of_folder(cls, folder: Path) -> TextTokens:
        """Raises LoadError when the folder has no tokenizer that can be read."""
        from tokenizers import Tokenizer

        file = folder if folder.is_file() else folder / "tokenizer.json"
        try:
            return cls(Tokenizer.from_file(str(file)))
        # What `tokenizers` raises is a plain Exception.
        except Exception as error:
            raise LoadError(
                f"--model {folder}: {file} cannot be read: {error}",
                "name the checkpoint folder of the served model, or send --prompts random",
            ) from error

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Without tokens that mark a beginning."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def encode_long(self, text: str) -> list[int]:
        """As `encode` for each paragraph by itself, on all cores."""
        paragraphs = [f"{paragraph}\n\n" for paragraph in text.split("\n\n")]
        pieces = self._tokenizer.encode_batch(paragraphs, add_special_tokens=False)
        return [token for piece in pieces for token in piece.ids]

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def text_of(self, ids: Sequence[int]) -> tuple[str, int]:
        """A text that has as many tokens as `ids`, and nearly those; and how many it has.

        A cut through a word is tokenised anew in another way, so the text is shortened, or
        lengthened from its own beginning, until the count is right. Should no text with that count
        be near by, which no tokenizer that we know does, it is the nearest that was found.
        """
        wanted = len(ids)
        nearest, had = "", 0
        for text in self._tries(self.decode(ids), wanted):
            count = len(self.encode(text))
            if abs(count - wanted) <= abs(had - wanted):
                nearest, had = text, count
            if had == wanted:
                break
        return nearest, had

    def _tries(self, text: str, wanted: int) -> Iterator[str]:
        for _ in range(_TRIES):
            yield text
            found = self.encode(text)
            if len(found) > wanted:
                text = self.decode(found[:wanted])
            else:
                text += _FILLING * (wanted - len(found))
        # Two cuts that lead to each other: shorten well before the end and fill with small words.
        base = self.decode(self.encode(text)[: max(0, wanted - _TRIES)])
        yield from (base + _FILLING * extra for extra in range(2 * _TRIES))
