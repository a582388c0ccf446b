"""The tensors of a model, grouped by what uses them.

Exists so that the maths modules take exactly the tensors they need, named by role rather than
by checkpoint key, and so that a sharded engine can build the same records from slices.
Matrices are [out, in] as in checkpoints. E experts, d hidden, l latent (= d without a latent
projection), m expert hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from workers.model.config import LayerKind


@dataclass(frozen=True, slots=True)
class MambaWeights:
    """A Mamba-2 mixer; `in_proj` rows are gate, x, B, C, dt in this order."""

    in_proj: Tensor  # [inner + conv_dim + heads, d]
    in_proj_bias: Tensor | None
    conv: Tensor  # [conv_dim, conv_kernel]
    conv_bias: Tensor | None
    a_log: Tensor  # [heads], A = -exp(a_log)
    skip: Tensor  # [heads], D
    dt_bias: Tensor  # [heads]
    norm: Tensor  # [inner]
    out_proj: Tensor  # [d, inner]
    out_proj_bias: Tensor | None


@dataclass(frozen=True, slots=True)
class AttentionWeights:
    """Grouped-query attention; `qkv` rows are all of q, then k, then v."""

    qkv: Tensor  # [(heads + 2 kv_heads) * head_dim, d]
    qkv_bias: Tensor | None
    out: Tensor  # [d, heads * head_dim]
    out_bias: Tensor | None


@dataclass(frozen=True, slots=True)
class MlpWeights:
    """A two-matrix MLP."""

    up: Tensor  # [m, d]
    up_bias: Tensor | None
    down: Tensor  # [d, m]
    down_bias: Tensor | None


@dataclass(frozen=True, slots=True)
class MoeWeights:
    """Router, routed experts in the latent dimension, shared expert in the full one."""

    gate: Tensor  # [E, d], float32
    correction_bias: Tensor  # [E], float32, used for the choice of experts only
    latent_down: Tensor | None  # [l, d], None without a latent projection
    latent_down_bias: Tensor | None
    latent_up: Tensor | None  # [d, l]
    latent_up_bias: Tensor | None
    expert_up: Tensor  # [E, m, l]
    expert_down: Tensor  # [E, l, m]
    shared: MlpWeights | None


MixerWeights = MambaWeights | AttentionWeights | MlpWeights | MoeWeights


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One residual layer: x + mixer(rms_norm(x))."""

    kind: LayerKind
    norm: Tensor  # [d]
    mixer: MixerWeights


@dataclass(frozen=True, slots=True)
class MtpWeights:
    """The multi-token prediction block; embedding and lm_head are the model's."""

    embedding_norm: Tensor  # [d]
    hidden_norm: Tensor  # [d]
    combine: Tensor  # [d, 2 d], columns: embedding first, then hidden
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor  # [d]


@dataclass(frozen=True, slots=True)
class ModelWeights:
    """Everything a forward pass reads."""

    embeddings: Tensor  # [vocab, d]
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor  # [d]
    lm_head: Tensor  # [vocab, d]
    mtp: MtpWeights | None
