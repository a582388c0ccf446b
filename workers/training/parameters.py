"""Random initial parameters under their canonical names, and their optimiser groups."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from workers.checkpoint.schema import model_schema, mtp_schema
from workers.model.config import ModelConfig

CORRECTION_BIAS = "e_score_correction_bias"
Parameters = dict[str, Tensor]


def _initial(
    name: str, shape: tuple[int, ...], config: ModelConfig, rng: torch.Generator
) -> Tensor:
    if name.endswith(("norm.weight", "norm_f.weight", "layernorm.weight", ".D")):
        return torch.ones(shape)
    if name.endswith(CORRECTION_BIAS) or name.endswith(".bias"):
        return torch.zeros(shape)
    if name.endswith("A_log"):
        return torch.log(torch.empty(shape).uniform_(1, 16, generator=rng))
    if name.endswith("dt_bias"):
        dt = torch.exp(torch.empty(shape).uniform_(math.log(0.001), math.log(0.1), generator=rng))
        return dt + torch.log(-torch.expm1(-dt))  # the inverse of softplus
    if name == "embeddings.weight":
        return torch.empty(shape).normal_(0, 0.1, generator=rng)
    if name == "lm_head.weight":
        return torch.empty(shape).normal_(0, 0.02, generator=rng)
    std = shape[-1] ** -0.5
    if name.endswith(
        ("out_proj.weight", "o_proj.weight", "down_proj.weight", "latent_proj.weight")
    ):
        # What adds to the residual stream starts small, the more layers the smaller.
        std /= math.sqrt(2 * len(config.layers)) if "fc1" not in name else 1
    if name.endswith("experts.down_proj"):
        std /= config.routed_scaling_factor
    return torch.empty(shape).normal_(0, std, generator=rng)


def initial_parameters(config: ModelConfig, seed: int) -> Parameters:
    """Float32 leaf tensors for every name of the schema; router biases take no gradient."""
    rng = torch.Generator().manual_seed(seed)
    schema = model_schema(config) | mtp_schema(config)
    parameters = {}
    for name, expected in schema.items():
        tensor = _initial(name, expected.shape, config, rng)
        parameters[name] = tensor.requires_grad_(not name.endswith(CORRECTION_BIAS))
    return parameters


def optimiser_groups(parameters: Parameters, decay: float) -> list[dict[str, object]]:
    """Weight decay on matrices only, not on norms, biases, embeddings or Mamba's time scales."""
    trained = {name: tensor for name, tensor in parameters.items() if tensor.requires_grad}
    decayed = {
        name
        for name, tensor in trained.items()
        if tensor.ndim >= 2 and "embeddings" not in name and "conv1d" not in name
    }
    return [
        {"params": [trained[name] for name in trained if name in decayed], "weight_decay": decay},
        {"params": [trained[name] for name in trained if name not in decayed], "weight_decay": 0.0},
    ]
