"""The training forward pass: the serving maths over whole sequences, with gradients.

Exists because serving keeps state between calls and training does not: here every sequence
starts from zero state, and nothing is stored. All layers are the functions of workers/model.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from workers.model import attention, mamba, mlp, moe, mtp
from workers.model.config import ModelConfig
from workers.model.norm import rms_norm
from workers.model.weights import (
    AttentionWeights,
    MambaWeights,
    MlpWeights,
    ModelWeights,
    MoeWeights,
    MtpWeights,
)

# Told the router weights' record and the chosen experts of each MoE call.
Observe = Callable[[MoeWeights, Tensor], None]


def _moe(x: Tensor, weights: MoeWeights, config: ModelConfig, observe: Observe) -> Tensor:
    flat = x.flatten(0, -2)
    routing = moe.route(flat, weights, config)
    observe(weights, routing.indices)
    return moe.apply(flat, routing, weights, moe.experts_dense).view_as(x)


def backbone(
    tokens: Tensor, weights: ModelWeights, config: ModelConfig, observe: Observe
) -> Tensor:
    """Hidden states after norm_f, [b, t, d], of token ids [b, t]."""
    x = weights.embeddings[tokens]
    batch = tokens.shape[0]
    for layer in weights.layers:
        normed = rms_norm(x, layer.norm, config.layer_norm_epsilon)
        match layer.mixer:
            case MambaWeights() as mixer:
                history = x.new_zeros(batch, config.conv_dim, config.conv_kernel - 1)
                state = torch.zeros(
                    batch,
                    config.mamba_num_heads,
                    config.mamba_head_dim,
                    config.ssm_state_size,
                    device=x.device,
                )
                mixed, _, _ = mamba.mix_sequence(normed, history, state, mixer, config)
            case AttentionWeights() as mixer:
                q, k, v = attention.project_qkv(normed, mixer, config)
                mixed = attention.project_out(attention.attend(q, k, v, None), mixer)
            case MoeWeights() as mixer:
                mixed = _moe(normed, mixer, config, observe)
            case MlpWeights() as mixer:
                mixed = mlp.mix(normed, mixer)
        x = x + mixed
    return rms_norm(x, weights.final_norm, config.layer_norm_epsilon)


def draft_chain(
    tokens: Tensor,
    hidden: Tensor,
    weights: ModelWeights,
    block: MtpWeights,
    config: ModelConfig,
    depth: int,
    observe: Observe,
) -> list[Tensor]:
    """Hidden states of `depth` recursions of the MTP block, as drafting would make them.

    Recursion j at position i reads token i+j and the hidden state of recursion j-1 at i. Its
    attention sees what a draft sees: the first recursion's keys up to i, and the later
    recursions' keys of its own chain only.

    Args:
        tokens: [b, t].
        hidden: [b, t, d] from `backbone`.
        weights: the model, for its embeddings.
        block: its MTP block.
        config: the shape.
        depth: recursions.
        observe: as in `backbone`.

    Returns:
        `depth` tensors [b, t - depth - 1, d]; entry j-1 at position i scores token i+j+1.
    """
    length = tokens.shape[1] - depth - 1
    causal = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()
    own = torch.eye(length, dtype=torch.bool, device=tokens.device)
    keys: dict[int, list[tuple[Tensor, Tensor]]] = {}
    outputs = []
    state = hidden[:, :length]
    for step in range(1, depth + 1):
        visible = torch.cat([causal] + [own] * (step - 1), dim=1)

        def attend(x: Tensor, layer: int, w: AttentionWeights, mask: Tensor = visible) -> Tensor:
            q, k, v = attention.project_qkv(x, w, config)
            seen = keys.setdefault(layer, [])
            seen.append((k, v))
            all_k, all_v = (torch.cat(parts, dim=1) for parts in zip(*seen, strict=True))
            return attention.project_out(attention.attend(q, all_k, all_v, mask), w)

        embedding = weights.embeddings[tokens[:, step : step + length]]
        state = mtp.run_block(
            mtp.combine(embedding, state, block, config),
            block,
            config,
            attend,
            lambda x, w: _moe(x, w, config, observe),
        )
        outputs.append(state)
    return outputs
