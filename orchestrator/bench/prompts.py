"""Prompts of a given length: real text where the model has a tokenizer, else random tokens.

Random tokens flatter speculation and leave experts unused (SPEED-Bench), so text is what a trained
model is measured with. The text is this repository's own. Every prompt is another piece of it: a
repeated one would be answered from a prefix cache.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import numpy.typing as npt

_REPOSITORY = Path(__file__).parents[2]
_SPECIAL_TOKENS = 16  # low ids are control tokens in tokenizers as published


class PromptSource:
    """Deals prompts; the same label gives the same prompts."""

    def __init__(self, text: npt.NDArray[np.int64] | None, vocab_size: int) -> None:
        self._text = text
        self._vocab_size = vocab_size

    @classmethod
    def of_model(cls, folder: Path, vocab_size: int, root: Path = _REPOSITORY) -> PromptSource:
        """Prompts for a checkpoint folder, from the text files under `root`."""
        tokenizer_file = folder / "tokenizer.json"
        if not tokenizer_file.exists():
            return cls(None, vocab_size)
        from tokenizers import Tokenizer

        files = [*sorted(root.glob("*.md")), *sorted((root / "docs").rglob("*.md"))]
        files += sorted((root / "workers").rglob("*.py"))
        text = "\n\n".join(file.read_text(encoding="utf-8") for file in files)
        ids = Tokenizer.from_file(str(tokenizer_file)).encode(text, add_special_tokens=False).ids
        return cls(np.asarray(ids, dtype=np.int64), vocab_size)

    @property
    def kind(self) -> str:
        """What prompts are made of."""
        return "random tokens" if self._text is None else "text"

    def deal(self, label: str, count: int, tokens: int) -> list[list[int]]:
        """`count` prompts of `tokens` tokens each."""
        rng = random.Random(label)
        if self._text is None or len(self._text) < 2 * tokens:
            low = min(_SPECIAL_TOKENS, self._vocab_size - 1)
            return [rng.choices(range(low, self._vocab_size), k=tokens) for _ in range(count)]
        starts = [rng.randrange(len(self._text) - tokens) for _ in range(count)]
        return [self._text[start : start + tokens].tolist() for start in starts]
