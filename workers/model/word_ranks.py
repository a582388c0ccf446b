"""Scores of a vocabulary that is cut over ranks.

Exists apart because the two uses differ: to sample, rank 0 needs all scores; to draft, every rank
needs the best token and nothing else, which is two numbers from each instead of the vocabulary.
Each rank has `ceil(vocab / ranks)` words but for the last ones, which may have fewer.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from workers.model.ranks import Ranks


def gather_scores(scores: Tensor, vocab_size: int, ranks: Ranks) -> Tensor:
    """All scores [..., vocab] on rank 0, from this rank's part [..., words]; elsewhere anything."""
    parts = ranks.gather(_padded(scores, vocab_size, ranks))
    if ranks.rank != 0:
        return parts
    return torch.cat(parts.unbind(), dim=-1)[..., :vocab_size]


def best_word(scores: Tensor, vocab_size: int, ranks: Ranks) -> Tensor:
    """The word that scores highest, int64 [...], on every rank; of equals the first.

    Args:
        scores: float32 [..., words], this rank's part.
        vocab_size: words of all ranks.
        ranks: the others.
    """
    best, word = _padded(scores, vocab_size, ranks).max(dim=-1)
    # float64 holds both a float32 and the number of a word exactly.
    word = word + ranks.rank * _words(vocab_size, ranks)
    found = ranks.gather_everywhere(torch.stack([best.double(), word.double()]))
    winner = found[:, 0].argmax(dim=0, keepdim=True)
    return found[:, 1].gather(0, winner).squeeze(0).long()


def _words(vocab_size: int, ranks: Ranks) -> int:
    return -(-vocab_size // ranks.layout.size)


def _padded(scores: Tensor, vocab_size: int, ranks: Ranks) -> Tensor:
    missing = _words(vocab_size, ranks) - scores.shape[-1]
    return functional.pad(scores, (0, missing), value=-torch.inf) if missing else scores
