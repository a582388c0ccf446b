"""Log-probabilities of chosen tokens and of the most likely ones, under the model itself.

They are those of the logits as the model gave them, before temperature, penalties and grammar, as
vLLM reports them by default.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from workers.engine.chosen import Chosen as Chosen


def with_logprobs(logits: Tensor, token_ids: Sequence[int], tops: Sequence[int]) -> list[Chosen]:
    """The tokens with what is to be reported of them.

    Args:
        logits: float32 [tokens, vocab], as the model gave them.
        token_ids: the chosen token of each row.
        tops: how many alternatives to report for each.
    """
    logprobs = torch.log_softmax(logits, dim=-1)
    picked = torch.tensor(token_ids, device=logits.device)[:, None]
    own: list[float] = logprobs.gather(1, picked)[:, 0].tolist()
    most = min(max(tops), logits.shape[1])
    if most == 0:
        return [Chosen(*pair) for pair in zip(token_ids, own, strict=True)]
    best = logprobs.topk(most, dim=-1)
    ids: list[list[int]] = best.indices.tolist()
    values: list[list[float]] = best.values.tolist()
    return [
        Chosen(token_id, logprob, tuple(zip(ids[row][:top], values[row][:top], strict=True)))
        for row, (token_id, logprob, top) in enumerate(zip(token_ids, own, tops, strict=True))
    ]
