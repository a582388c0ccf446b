"""The tensors of a model, grouped by what uses them.

Exists so that the maths modules take exactly the tensors they need, named by role rather than
by checkpoint key, and so that a sharded engine can build the same records from slices.
Matrices are [out, in] as in checkpoints. A record with `ranks` is one rank's part of a layer, and
what comes of its last product is to be added up over them. E experts, d hidden, l latent (= d
without a latent projection), m expert hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from workers.kernels.cpu.mamba import MambaLayer
from workers.model.config import LayerKind
from workers.model.linear import Linear
from workers.model.ranks import Ranks


@dataclass(frozen=True, slots=True)
class MambaWeights:
    """A Mamba-2 mixer; `in_proj` rows are gate, x, B, C, dt in this order.

    What the recurrence reads is float32 whatever the model dtype.
    """

    in_proj: Linear  # [inner + conv_dim + heads, d]
    conv: Tensor  # [conv_dim, conv_kernel]
    conv_bias: Tensor | None
    taps: Tensor  # [conv_kernel, conv_dim], `conv` with channels side by side
    rate: Tensor  # [heads], float32: A = -exp(A_log)
    skip: Tensor  # [heads], float32: D
    dt_bias: Tensor  # [heads], float32
    norm: Tensor  # [inner]
    out_proj: Linear  # [d, inner]
    ranks: Ranks | None = None
    # Made once, since every step of every layer needs it; None has it made for each call.
    described: MambaLayer | None = None


@dataclass(frozen=True, slots=True)
class AttentionWeights:
    """Grouped-query attention; `qkv` rows are all of q, then k, then v."""

    qkv: Linear  # [(heads + 2 kv_heads) * head_dim, d]
    out: Linear  # [d, heads * head_dim]
    ranks: Ranks | None = None


@dataclass(frozen=True, slots=True)
class MlpWeights:
    """A two-matrix MLP."""

    up: Linear  # [m, d]
    down: Linear  # [d, m]
    ranks: Ranks | None = None


@dataclass(frozen=True, slots=True)
class MoeWeights:
    """Router, routed experts in the latent dimension, shared expert in the full one."""

    gate: Linear  # [E, d], float32
    correction_bias: Tensor  # [E], float32, used for the choice of experts only
    latent_down: Linear | None  # [l, d], None without a latent projection
    latent_up: Linear | None  # [d, l]
    expert_up: Tensor  # [E, m, l]
    expert_down: (
        Tensor  # [E, m, l]: the one matrix that is [in, out], so all experts are one product
    )
    shared: MlpWeights | None
    all_up: Linear  # [E m, l], expert_up as one matrix
    all_down: Linear  # [l, E m], expert_down as one matrix
    ranks: Ranks | None = None


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
    combine: Linear  # [d, 2 d], columns: embedding first, then hidden
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor  # [d]


@dataclass(frozen=True, slots=True)
class ModelWeights:
    """Everything a forward pass reads."""

    embeddings: Tensor  # [vocab, d]
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor  # [d]
    lm_head: Tensor  # [vocab, d]
    score: Linear  # the product with lm_head
    mtp: MtpWeights | None
