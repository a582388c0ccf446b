"""Turns documents into one long row of token ids and cuts training batches from it.

Exists to fix, in one place, how a document looks to the model: half of them plain
(`<s>text</s>`), half as a chat turn in exactly the form the chat template writes, so that the
shipped model answers chat requests with text instead of noise.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor

from workers.training.corpus import Document
from workers.training.tokenizer import BOS, EOS


def render(document: Document, *, as_chat: bool) -> str:
    """The document without its leading <s>: plain text, or a question and its answer."""
    if not as_chat:
        return f"{document.title}\n{document.text}"
    return (
        f"<|im_start|>user\n{document.question}<|im_end|>\n"
        f"<|im_start|>assistant\n{document.text}<|im_end|>\n"
    )


@dataclass(frozen=True, slots=True)
class TokenStream:
    """All documents of one split, tokenised and joined.

    Attributes:
        tokens: int32 [N].
        text_bytes: UTF-8 bytes of the text behind the tokens, for bits per byte.
    """

    tokens: npt.NDArray[np.int32]
    text_bytes: int

    @classmethod
    def build(cls, documents: list[Document], tokenizer: Tokenizer, *, seed: int) -> TokenStream:
        """Shuffle, render and tokenise; each document appears once, half of them as chat."""
        order = random.Random(seed)
        shuffled = list(documents)
        order.shuffle(shuffled)
        rendered = [(render(d, as_chat=(chat := order.random() < 0.5)), chat) for d in shuffled]
        encoded = tokenizer.encode_batch([text for text, _ in rendered], add_special_tokens=False)
        pieces: list[int] = []
        for encoding, (_, chat) in zip(encoded, rendered, strict=True):
            pieces += [BOS, *encoding.ids] if chat else [BOS, *encoding.ids, EOS]
        size = sum(len(text.encode()) for text, _ in rendered)
        return cls(np.asarray(pieces, dtype=np.int32), size)


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """Deterministic batches: window `step` of a fixed permutation, so that a resume repeats none.

    Attributes:
        sequences: windows per batch.
        length: tokens per window, the targets of the last positions included.
        seed: order of the windows; a new order each epoch.
    """

    sequences: int
    length: int
    seed: int

    def batch(self, stream: TokenStream, step: int) -> Tensor:
        """Token ids int64 [sequences, length] of optimiser step `step` (0-based)."""
        windows = (len(stream.tokens) - self.length) // self.length
        first = step * self.sequences
        rows = []
        for index in range(first, first + self.sequences):
            epoch, place = divmod(index, windows)
            generator = np.random.default_rng([self.seed, epoch])
            # A new offset each epoch, so that documents are cut at other places.
            offset = int(generator.integers(self.length))
            start = int(generator.permutation(windows)[place]) * self.length + offset
            rows.append(stream.tokens[start : start + self.length])
        return torch.from_numpy(np.stack(rows).astype(np.int64))
