"""Stand-ins for a model and a drafter: logits that the tokens so far determine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from workers.engine.sampling.logprobs import Chosen
from workers.engine.sampling.state import SamplingState
from workers.engine.sampling.verify import choose_windows

Model = Callable[[Sequence[int]], Tensor]
Drafter = Callable[[Sequence[int]], Sequence[int]]


def hashed_model(vocab_size: int, spread: float = 2.0) -> Model:
    """Logits [vocab] that depend on the whole history; drawn once for each."""

    def logits(history: Sequence[int]) -> Tensor:
        state = 17
        for token_id in history:
            state = (state * 1_000_003 + token_id + 1) % (1 << 31)
        return torch.randn(vocab_size, generator=torch.Generator().manual_seed(state)) * spread

    return logits


def generate(
    model: Model,
    prompt: Sequence[int],
    state: SamplingState,
    window: int = 1,
    drafter: Drafter | None = None,
    limit: int = 1000,
) -> list[Chosen]:
    """Run one answer to its end (or `limit` tokens), with windows of a model that cannot err."""
    answer: list[Chosen] = []
    while state.ended is None and len(answer) < limit:
        history = [*prompt, *state.output_token_ids]
        draft = list(drafter(history))[: window - 1] if drafter is not None else []
        rows = [model([*history, *draft[:position]]) for position in range(len(draft) + 1)]
        rows += [torch.full_like(rows[0], torch.nan)] * (window - len(rows))
        (chosen,) = choose_windows(torch.stack(rows)[None], [draft], [state])
        answer.extend(chosen)
    return answer
