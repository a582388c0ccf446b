"""Writes a small model as the Nemotron 3 Super release is written, matrices quantised one by one.

The model has every kind of layer, an MTP block, NVFP4 and FP8 matrices of every role that the
release quantises, and plain ones beside them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tests.reference_models import write_tensors
from tests.unit.checkpoint.quantise import to_fp8, to_nvfp4
from tests.unit.checkpoint.super_release import DATA, quantisation_of
from workers.checkpoint.schema import EXPERTS_DOWN, EXPERTS_UP, published_name
from workers.model.config import ModelConfig, parse_config
from workers.model.config_fields import Fields
from workers.training.parameters import initial_parameters

PATTERN = "MEM*E-ME"
EXPERTS = 8
CONFIG: dict[str, object] = {
    **json.loads((DATA / "super_config.json").read_text(encoding="utf-8")),
    "hybrid_override_pattern": PATTERN,
    "num_hidden_layers": len(PATTERN),
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "mamba_num_heads": 16,
    "mamba_head_dim": 8,
    "n_groups": 2,
    "ssm_state_size": 16,
    "n_routed_experts": EXPERTS,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 48,
    "moe_latent_size": 32,
    "moe_shared_expert_intermediate_size": 128,
    "max_position_embeddings": 4096,
}
FORMS = {
    "backbone.layers.0.mixer.in_proj": "FP8",
    "backbone.layers.0.mixer.out_proj": "NVFP4",
    "backbone.layers.1.mixer.fc1_latent_proj": "FP8",
    "backbone.layers.1.mixer.fc2_latent_proj": "NVFP4",
    "backbone.layers.1.mixer.shared_experts.up_proj": "FP8",
    "backbone.layers.1.mixer.shared_experts.down_proj": "NVFP4",
    "backbone.layers.2.mixer.in_proj": "NVFP4",
    "backbone.layers.2.mixer.out_proj": "FP8",
    "backbone.layers.3.mixer.q_proj": "NVFP4",
    "backbone.layers.3.mixer.k_proj": "FP8",
    "backbone.layers.3.mixer.o_proj": "FP8",
    "backbone.layers.5.mixer.up_proj": "NVFP4",
    "backbone.layers.5.mixer.down_proj": "FP8",
    **{
        f"backbone.layers.{layer}.mixer.experts.{expert}.{matrix}": form
        for layer, form in ((1, "NVFP4"), (4, "FP8"))
        for expert in range(EXPERTS)
        for matrix in ("up_proj", "down_proj")
    },
    "lm_head": "FP8",
}


@dataclass(frozen=True, slots=True)
class Mixed:
    """A written checkpoint: its folder, shape, stored tensors, and the weights they stand for."""

    folder: Path
    config: ModelConfig
    stored: dict[str, Tensor]
    weights: dict[str, Tensor]  # by canonical name, float32


def small_config(**changes: object) -> ModelConfig:
    return parse_config(Fields({**CONFIG, **changes}, "config.json"))


def write_mixed(folder: Path, forms: Mapping[str, str] = FORMS, *, seed: int = 0) -> Mixed:
    """Write the checkpoint as two files, an index and a config.json."""
    config = small_config()
    stored: dict[str, Tensor] = {}
    weights: dict[str, Tensor] = {}
    for name, parameter in initial_parameters(config, seed).items():
        tensor = parameter.detach()
        if name.endswith((EXPERTS_UP, EXPERTS_DOWN)):
            stem, matrix = published_name(name).rsplit(".", 1)
            each = [
                _store(f"{stem}.{index}.{matrix}.weight", expert, forms, stored)
                for index, expert in enumerate(tensor)
            ]
            weights[name] = torch.stack(each)
        else:
            weights[name] = _store(published_name(name), tensor, forms, stored)
    for letter in "kv":
        name = f"backbone.layers.3.mixer.{letter}_proj.{letter}_scale"
        stored[name] = torch.tensor(0.02)
    folder.mkdir(parents=True)
    write_tensors(folder, stored, shards=2)
    text = json.dumps({**CONFIG, "quantization_config": quantisation_of(forms)})
    (folder / "config.json").write_text(text, encoding="utf-8")
    return Mixed(folder, config, stored, weights)


def _store(
    name: str, tensor: Tensor, forms: Mapping[str, str], stored: dict[str, Tensor]
) -> Tensor:
    """Put a tensor, quantised as `forms` says, under its published names; what it stands for."""
    module = name.removesuffix(".weight")
    form = forms.get(module)
    if form is None:
        kept = tensor if name.endswith("e_score_correction_bias") else tensor.bfloat16()
        stored[name] = kept.contiguous()
        return kept.float()
    stored[f"{module}.input_scale"] = torch.tensor(0.125)
    if form == "FP8":
        eight = to_fp8(tensor)
        stored[name], stored[f"{module}.weight_scale"] = eight.values, eight.scale
        return eight.reference()
    four = to_nvfp4(tensor)
    stored[name], stored[f"{module}.weight_scale"] = four.packed, four.scale
    stored[f"{module}.weight_scale_2"] = four.global_scale
    return four.reference()
