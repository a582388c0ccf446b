"""The training loss: next token plus the MTP block's later tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from workers.model.config import ModelConfig
from workers.model.weights import ModelWeights
from workers.training.forward import Observe, backbone, draft_chain

# Share of the MTP loss in the total (Nemotron 3, arXiv 2604.12374).
DRAFT_WEIGHT = 0.3


@dataclass(frozen=True, slots=True)
class Losses:
    """Nats per token: the total to minimise, the next token's, and each draft recursion's."""

    total: Tensor
    main: Tensor
    drafts: tuple[Tensor, ...]


def _cross_entropy(hidden: Tensor, targets: Tensor, lm_head: Tensor) -> Tensor:
    logits = functional.linear(hidden.flatten(0, 1), lm_head)
    return functional.cross_entropy(logits, targets.flatten())


def losses(
    tokens: Tensor, weights: ModelWeights, config: ModelConfig, depth: int, observe: Observe
) -> Losses:
    """Losses of a batch of token ids [b, t] with `depth` draft recursions (0 for none)."""
    hidden = backbone(tokens, weights, config, observe)
    main = _cross_entropy(hidden[:, :-1], tokens[:, 1:], weights.lm_head)
    if depth == 0 or weights.mtp is None:
        return Losses(main, main, ())
    chain = draft_chain(tokens, hidden, weights, weights.mtp, config, depth, observe)
    drafts = tuple(
        _cross_entropy(state, tokens[:, j + 1 : j + 1 + state.shape[1]], weights.lm_head)
        for j, state in enumerate(chain, start=1)
    )
    return Losses(main + DRAFT_WEIGHT * torch.stack(drafts).mean(), main, drafts)
