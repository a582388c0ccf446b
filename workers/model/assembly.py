"""Builds weight records from tensors under their canonical names.

Exists apart from reading files because training assembles the same records from its parameters:
a name is mapped to a role in exactly one place.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from workers.model import schema
from workers.model.config import LayerKind, ModelConfig
from workers.model.weights import (
    AttentionWeights,
    LayerWeights,
    MambaWeights,
    MixerWeights,
    MlpWeights,
    ModelWeights,
    MoeWeights,
    MtpWeights,
)


def _mamba(tensors: Mapping[str, Tensor], at: str) -> MambaWeights:
    return MambaWeights(
        in_proj=tensors[f"{at}.in_proj.weight"],
        in_proj_bias=tensors.get(f"{at}.in_proj.bias"),
        conv=tensors[f"{at}.conv1d.weight"].squeeze(1),
        conv_bias=tensors.get(f"{at}.conv1d.bias"),
        a_log=tensors[f"{at}.A_log"],
        skip=tensors[f"{at}.D"],
        dt_bias=tensors[f"{at}.dt_bias"],
        norm=tensors[f"{at}.norm.weight"],
        out_proj=tensors[f"{at}.out_proj.weight"],
        out_proj_bias=tensors.get(f"{at}.out_proj.bias"),
    )


def _attention(tensors: Mapping[str, Tensor], at: str) -> AttentionWeights:
    biases = [tensors.get(f"{at}.{name}_proj.bias") for name in "qkv"]
    present = [bias for bias in biases if bias is not None]
    return AttentionWeights(
        qkv=torch.cat([tensors[f"{at}.{name}_proj.weight"] for name in "qkv"]),
        qkv_bias=torch.cat(present) if len(present) == len(biases) else None,
        out=tensors[f"{at}.o_proj.weight"],
        out_bias=tensors.get(f"{at}.o_proj.bias"),
    )


def _mlp(tensors: Mapping[str, Tensor], at: str) -> MlpWeights:
    return MlpWeights(
        up=tensors[f"{at}.up_proj.weight"],
        up_bias=tensors.get(f"{at}.up_proj.bias"),
        down=tensors[f"{at}.down_proj.weight"],
        down_bias=tensors.get(f"{at}.down_proj.bias"),
    )


def _moe(tensors: Mapping[str, Tensor], at: str) -> MoeWeights:
    shared = f"{at}.shared_experts"
    return MoeWeights(
        gate=tensors[f"{at}.gate.weight"].float(),
        correction_bias=tensors[f"{at}.gate.e_score_correction_bias"].float(),
        latent_down=tensors.get(f"{at}.fc1_latent_proj.weight"),
        latent_down_bias=tensors.get(f"{at}.fc1_latent_proj.bias"),
        latent_up=tensors.get(f"{at}.fc2_latent_proj.weight"),
        latent_up_bias=tensors.get(f"{at}.fc2_latent_proj.bias"),
        expert_up=tensors[f"{at}.experts.up_proj"],
        expert_down=tensors[f"{at}.experts.down_proj"],
        shared=_mlp(tensors, shared) if f"{shared}.up_proj.weight" in tensors else None,
    )


def _layer(tensors: Mapping[str, Tensor], at: str, kind: LayerKind) -> LayerWeights:
    mixer: MixerWeights
    match kind:
        case LayerKind.MAMBA:
            mixer = _mamba(tensors, f"{at}.mixer")
        case LayerKind.ATTENTION:
            mixer = _attention(tensors, f"{at}.mixer")
        case LayerKind.MOE:
            mixer = _moe(tensors, f"{at}.mixer")
        case LayerKind.MLP:
            mixer = _mlp(tensors, f"{at}.mixer")
    return LayerWeights(kind, tensors[f"{at}.norm.weight"], mixer)


def assemble(config: ModelConfig, tensors: Mapping[str, Tensor]) -> ModelWeights:
    """Group tensors that satisfy `schema.model_schema` (and `mtp_schema`, if there) by role."""
    mtp: MtpWeights | None = None
    if set(schema.mtp_schema(config)) & set(tensors):
        last = len(config.mtp_layers) - 1
        mtp = MtpWeights(
            embedding_norm=tensors["mtp.layers.0.enorm.weight"],
            hidden_norm=tensors["mtp.layers.0.hnorm.weight"],
            combine=tensors["mtp.layers.0.eh_proj.weight"],
            layers=tuple(
                _layer(tensors, f"mtp.layers.{index}", kind)
                for index, kind in enumerate(config.mtp_layers)
            ),
            final_norm=tensors[f"mtp.layers.{last}.final_layernorm.weight"],
        )
    embeddings = tensors["embeddings.weight"]
    head = tensors.get("lm_head.weight")
    return ModelWeights(
        embeddings=embeddings,
        layers=tuple(
            _layer(tensors, f"layers.{index}", kind) for index, kind in enumerate(config.layers)
        ),
        final_norm=tensors["norm_f.weight"],
        lm_head=embeddings if head is None else head,
        mtp=mtp,
    )
