"""Builds weight records from tensors under their canonical names.

Exists apart from reading files because training assembles the same records from its parameters:
a name is mapped to a role in exactly one place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from workers.kernels.cpu.mamba import describe
from workers.model.config import LayerKind, ModelConfig
from workers.model.linear import Linear
from workers.model.ranks import Ranks
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


def _linear(tensors: Mapping[str, Tensor], at: str) -> Linear:
    return Linear.of(tensors[f"{at}.weight"], tensors.get(f"{at}.bias"))


def _summed(tensors: Mapping[str, Tensor], at: str, ranks: Ranks | None) -> Linear:
    """A product whose results are added up over ranks; the bias is added by one of them."""
    bias = None if ranks is not None and ranks.rank else tensors.get(f"{at}.bias")
    return Linear.of(tensors[f"{at}.weight"], bias)


def _mamba(
    config: ModelConfig, tensors: Mapping[str, Tensor], at: str, ranks: Ranks | None
) -> MambaWeights:
    conv = tensors[f"{at}.conv1d.weight"].squeeze(1)
    weights = MambaWeights(
        in_proj=_linear(tensors, f"{at}.in_proj"),
        conv=conv,
        conv_bias=tensors.get(f"{at}.conv1d.bias"),
        taps=conv.t().contiguous(),
        rate=-torch.exp(tensors[f"{at}.A_log"].float()),
        skip=tensors[f"{at}.D"].float(),
        dt_bias=tensors[f"{at}.dt_bias"].float(),
        norm=tensors[f"{at}.norm.weight"],
        out_proj=_summed(tensors, f"{at}.out_proj", ranks),
        ranks=ranks,
    )
    return replace(weights, described=describe(weights, config))


def _attention(tensors: Mapping[str, Tensor], at: str, ranks: Ranks | None) -> AttentionWeights:
    biases = [tensors.get(f"{at}.{name}_proj.bias") for name in "qkv"]
    present = [bias for bias in biases if bias is not None]
    return AttentionWeights(
        qkv=Linear.of(
            torch.cat([tensors[f"{at}.{name}_proj.weight"] for name in "qkv"]),
            torch.cat(present) if len(present) == len(biases) else None,
        ),
        out=_summed(tensors, f"{at}.o_proj", ranks),
        ranks=ranks,
    )


def _mlp(tensors: Mapping[str, Tensor], at: str, ranks: Ranks | None) -> MlpWeights:
    return MlpWeights(
        up=_linear(tensors, f"{at}.up_proj"),
        down=_summed(tensors, f"{at}.down_proj", ranks),
        ranks=ranks,
    )


def _moe(tensors: Mapping[str, Tensor], at: str, ranks: Ranks | None) -> MoeWeights:
    shared: MlpWeights | None = None
    if f"{at}.shared_experts.up_proj.weight" in tensors:
        # Its partial sums are added up together with those of the experts.
        shared = replace(_mlp(tensors, f"{at}.shared_experts", ranks), ranks=None)
    latent = f"{at}.fc1_latent_proj.weight" in tensors
    up = tensors[f"{at}.experts.up_proj"]
    down = tensors[f"{at}.experts.down_proj"].transpose(1, 2).contiguous()
    return MoeWeights(
        gate=Linear.of(tensors[f"{at}.gate.weight"].float()),
        correction_bias=tensors[f"{at}.gate.e_score_correction_bias"].float(),
        latent_down=_linear(tensors, f"{at}.fc1_latent_proj") if latent else None,
        latent_up=_linear(tensors, f"{at}.fc2_latent_proj") if latent else None,
        expert_up=up,
        expert_down=down,
        shared=shared,
        all_up=Linear.of(up.flatten(0, 1)),
        all_down=Linear.of(down.flatten(0, 1).t()),
        ranks=ranks,
    )


def _layer(
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    at: str,
    kind: LayerKind,
    ranks: Ranks | None,
) -> LayerWeights:
    mixer: MixerWeights
    match kind:
        case LayerKind.MAMBA:
            mixer = _mamba(config, tensors, f"{at}.mixer", ranks)
        case LayerKind.ATTENTION:
            mixer = _attention(tensors, f"{at}.mixer", ranks)
        case LayerKind.MOE:
            mixer = _moe(tensors, f"{at}.mixer", ranks)
        case LayerKind.MLP:
            mixer = _mlp(tensors, f"{at}.mixer", ranks)
    return LayerWeights(kind, tensors[f"{at}.norm.weight"], mixer)


def assemble(
    config: ModelConfig, tensors: Mapping[str, Tensor], ranks: Ranks | None = None
) -> ModelWeights:
    """Group the tensors of `workers.checkpoint.schema` by role; the MTP block may be left out.

    With `ranks` they are those of one rank (`workers.checkpoint.shard`).
    """
    mtp: MtpWeights | None = None
    if any(name.startswith("mtp.") for name in tensors):
        last = len(config.mtp_layers) - 1
        mtp = MtpWeights(
            embedding_norm=tensors["mtp.layers.0.enorm.weight"],
            hidden_norm=tensors["mtp.layers.0.hnorm.weight"],
            combine=_linear(tensors, "mtp.layers.0.eh_proj"),
            layers=tuple(
                _layer(config, tensors, f"mtp.layers.{index}", kind, ranks)
                for index, kind in enumerate(config.mtp_layers)
            ),
            final_norm=tensors[f"mtp.layers.{last}.final_layernorm.weight"],
        )
    embeddings = tensors["embeddings.weight"]
    lm_head = tensors.get("lm_head.weight", embeddings)
    return ModelWeights(
        embeddings=embeddings,
        layers=tuple(
            _layer(config, tensors, f"layers.{index}", kind, ranks)
            for index, kind in enumerate(config.layers)
        ),
        final_norm=tensors["norm_f.weight"],
        lm_head=lm_head,
        score=Linear.of(lm_head),
        mtp=mtp,
    )
