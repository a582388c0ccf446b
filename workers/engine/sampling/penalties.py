"""Penalties for tokens that have been there before.

Counts are kept as one tensor for each request that asked for a penalty and changed by one entry
for each token, so that no history is read again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from workers.engine.commands import Sampling


class TokenCounts:
    """Which tokens the prompt has, and how often the answer so far has each."""

    def __init__(
        self,
        prompt_token_ids: Sequence[int],
        output_token_ids: Sequence[int],
        vocab_size: int,
        device: torch.device,
    ) -> None:
        self.in_prompt = torch.zeros(vocab_size, dtype=torch.bool, device=device)
        self.in_prompt[torch.tensor(prompt_token_ids, dtype=torch.int64, device=device)] = True
        written = torch.tensor(output_token_ids, dtype=torch.int64)
        self.in_output = torch.bincount(written, minlength=vocab_size).float().to(device)

    def add(self, token_id: int) -> None:
        """Count a token of the answer."""
        self.in_output[token_id] += 1.0


def penalise(
    logits: Tensor, samplings: Sequence[Sampling], counts: Sequence[TokenCounts]
) -> Tensor:
    """Logits after the penalties of each row.

    Repetition divides positive logits and multiplies negative ones (CTRL, Keskar et al., 2019, as
    in transformers and vLLM); frequency is subtracted for each time, presence once (OpenAI).

    Args:
        logits: float32 [rows, vocab]; not changed.
        samplings, counts: one for each row.
    """

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=logits.device)[:, None]

    repetition = column([sampling.repetition_penalty for sampling in samplings])
    frequency = column([sampling.frequency_penalty for sampling in samplings])
    presence = column([sampling.presence_penalty for sampling in samplings])
    in_output = torch.stack([count.in_output for count in counts])
    in_prompt = torch.stack([count.in_prompt for count in counts])
    written = in_output > 0.0
    weakened = torch.where(logits > 0.0, logits / repetition, logits * repetition)
    penalised = torch.where(written | in_prompt, weakened, logits)
    return penalised - frequency * in_output - presence * written
