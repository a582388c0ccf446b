"""Choosing the next token from logits, the same one whatever else is in the batch.

A sampled token depends on the logits, the request's seed and the output index alone: the one
random number it needs is a hash of seed and index, so batches, workers and restarts do not
change what is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.engine.commands import Sampling

_MASK_64 = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Chosen:
    """One chosen token and, when asked for, its log-probability under the model."""

    token_id: int
    logprob: float | None


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1) that depends on `seed` and `index` only.

    SplitMix64 (Steele, Lea and Flood, 2014) over both, so that neighbouring indexes and
    neighbouring seeds are unrelated.
    """
    mixed = _splitmix64(_splitmix64(seed & _MASK_64) ^ (index & _MASK_64))
    return (mixed >> 11) * 2.0**-53


def _splitmix64(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _MASK_64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return value ^ (value >> 31)


def choose(logits: Tensor, samplings: Sequence[Sampling], indexes: Sequence[int]) -> list[Chosen]:
    """Choose one token for each row.

    Args:
        logits: float32 [rows, vocab].
        samplings: how to choose, one for each row.
        indexes: output index of the token to choose, one for each row.
    """
    token_ids: list[int] = logits.argmax(dim=-1).tolist()
    for row, (sampling, index) in enumerate(zip(samplings, indexes, strict=True)):
        if sampling.temperature > 0.0:
            token_ids[row] = _sample(logits[row], sampling, uniform(sampling.seed, index))
    wanted = [row for row, sampling in enumerate(samplings) if sampling.logprobs]
    logprobs: dict[int, float] = {}
    if wanted:
        chosen = torch.tensor([token_ids[row] for row in wanted], device=logits.device)
        rows = torch.log_softmax(logits[wanted], dim=-1)
        picked = rows.gather(1, chosen[:, None])[:, 0].tolist()
        logprobs = dict(zip(wanted, picked, strict=True))
    return [Chosen(token_id, logprobs.get(row)) for row, token_id in enumerate(token_ids)]


def _sample(logits: Tensor, sampling: Sampling, draw: float) -> int:
    """Invert the cumulative distribution of what top-k and top-p leave, most likely first.

    A token is kept by top-p while the tokens before it have less than `top_p` of the mass, so
    that the most likely one always stays.
    """
    ordered, order = torch.sort(logits / sampling.temperature, descending=True, stable=True)
    if sampling.top_k > 0:
        ordered = ordered[: sampling.top_k]
    probabilities = torch.softmax(ordered.double(), dim=-1)
    cumulative = probabilities.cumsum(dim=-1)
    if sampling.top_p < 1.0:
        kept = int((cumulative - probabilities < sampling.top_p).sum())
        cumulative = cumulative[:kept]
    position = int(torch.searchsorted(cumulative, draw * float(cumulative[-1]), right=True))
    return int(order[min(position, len(cumulative) - 1)])
