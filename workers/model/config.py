"""The shape of a hybrid Nemotron-H model, read from a Hugging Face config.json.

Exists so that the rest of the code sees one frozen, checked description, whichever of the two
schemes the file follows: the published one (`hybrid_override_pattern`, a string of M E * -) or
the one transformers 5 writes (`layers_block_type`, a list of names). Field meanings follow
transformers' `configuration_nemotron_h.py`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import torch

from workers.model.config_fields import Fields
from workers.model.errors import CheckpointError


class LayerKind(Enum):
    """What a layer mixes with; the value is its letter in the published pattern."""

    MAMBA = "M"
    MOE = "E"
    ATTENTION = "*"
    MLP = "-"


_NAMES = {
    "mamba": LayerKind.MAMBA,
    "linear_attention": LayerKind.MAMBA,
    "moe": LayerKind.MOE,
    "attention": LayerKind.ATTENTION,
    "full_attention": LayerKind.ATTENTION,
    "mlp": LayerKind.MLP,
}
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes and switches of one model. Sizes of layer kinds that do not occur are 0.

    `time_step_min` is the lower bound on dt in the chunked scan, as transformers applies it (it
    ignores `time_step_limit`, and its one-token step has no bound). `mtp_layers` is empty
    when the model has no multi-token prediction block. `moe_latent_size` None means that experts
    work in the full dimension.
    """

    vocab_size: int
    hidden_size: int
    layers: tuple[LayerKind, ...]
    mtp_layers: tuple[LayerKind, ...]
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    attention_bias: bool
    intermediate_size: int
    mlp_bias: bool
    mamba_num_heads: int
    mamba_head_dim: int
    mamba_groups: int
    ssm_state_size: int
    conv_kernel: int
    chunk_size: int
    time_step_min: float
    use_conv_bias: bool
    use_bias: bool
    mamba_proj_bias: bool
    n_routed_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    moe_latent_size: int | None
    n_shared_experts: int
    moe_shared_expert_intermediate_size: int
    n_group: int
    topk_group: int
    norm_topk_prob: bool
    routed_scaling_factor: float
    layer_norm_epsilon: float
    tie_word_embeddings: bool
    max_position_embeddings: int
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    pad_token_id: int | None
    dtype: torch.dtype

    @property
    def attention_layers(self) -> int:
        """Backbone layers that keep KV."""
        return self.layers.count(LayerKind.ATTENTION)

    @property
    def mamba_layers(self) -> int:
        """Backbone layers that keep conv and SSM state."""
        return self.layers.count(LayerKind.MAMBA)

    @property
    def mtp_attention_layers(self) -> int:
        """Layers of the MTP block that keep draft KV."""
        return self.mtp_layers.count(LayerKind.ATTENTION)

    @property
    def mamba_inner(self) -> int:
        """Width of the Mamba mixer: heads x head_dim."""
        return self.mamba_num_heads * self.mamba_head_dim

    @property
    def conv_dim(self) -> int:
        """Channels of the causal convolution: x, B and C side by side."""
        return self.mamba_inner + 2 * self.mamba_groups * self.ssm_state_size

    @property
    def query_size(self) -> int:
        """Columns of q: attention heads x head_dim."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_size(self) -> int:
        """Columns of k (and of v): KV heads x head_dim."""
        return self.num_key_value_heads * self.head_dim

    @property
    def expert_size(self) -> int:
        """Width the routed experts read and write."""
        return self.hidden_size if self.moe_latent_size is None else self.moe_latent_size

    @classmethod
    def from_file(cls, path: Path) -> ModelConfig:
        """Read `path` (a config.json, or a folder that has one).

        Raises:
            CheckpointError: the file cannot be read, or a field is missing, wrong or unsupported.
        """
        file = path / "config.json" if path.is_dir() else path
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{file}: no such file. Give the folder of a Hugging Face checkpoint."
            ) from error
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{file}: cannot be read as JSON: {error}") from error
        if not isinstance(values, dict):
            raise CheckpointError(f"{file}: expected a JSON object, found {type(values).__name__}")
        return parse_config(Fields(values, str(file)))


def _kinds(fields: Fields, pattern: str, names: str) -> tuple[LayerKind, ...]:
    """Layer kinds from the pattern string or, without one, from the list of names."""
    if fields.has(pattern):
        text = fields.values[pattern]
        letters = {kind.value for kind in LayerKind}
        if not isinstance(text, str) or not text or not set(text) <= letters:
            raise fields.refuse(
                pattern, "expected a string of M, E, * and -", f"Correct '{pattern}'."
            )
        return tuple(LayerKind(letter) for letter in text)
    words = fields.words(names)
    unknown = [word for word in words if word not in _NAMES]
    if unknown or not words:
        raise fields.refuse(
            names, f"unknown layer kinds {unknown}", f"Supported: {', '.join(_NAMES)}."
        )
    return tuple(_NAMES[word] for word in words)


def _mtp_kinds(fields: Fields) -> tuple[LayerKind, ...]:
    physical = fields.integer("num_nextn_predict_layers", 0, minimum=0)
    if physical == 0:
        return ()
    if physical > 1:
        raise fields.refuse(
            "num_nextn_predict_layers",
            "only one MTP block, shared by all draft positions, is supported",
            "Set it to 1 (weights shared) or 0 (no drafts).",
        )
    kinds = _kinds(fields, "mtp_hybrid_override_pattern", "mtp_layers_block_type")
    if LayerKind.MAMBA in kinds:
        raise fields.refuse(
            "mtp_hybrid_override_pattern"
            if fields.has("mtp_hybrid_override_pattern")
            else "mtp_layers_block_type",
            "a Mamba layer inside the MTP block is not supported",
            "Set num_nextn_predict_layers to 0 to serve without drafts.",
        )
    return kinds


def _check(config: ModelConfig, fields: Fields) -> None:
    """Refuse sizes that cannot belong together."""
    used = {*config.layers, *config.mtp_layers}
    if LayerKind.ATTENTION in used and config.num_attention_heads % config.num_key_value_heads:
        raise fields.refuse(
            "num_key_value_heads",
            f"must divide num_attention_heads {config.num_attention_heads}",
            "Correct one of the two.",
        )
    if LayerKind.MAMBA in used and config.mamba_num_heads % config.mamba_groups:
        raise fields.refuse(
            "n_groups",
            f"must divide mamba_num_heads {config.mamba_num_heads}",
            "Correct one of the two.",
        )
    if LayerKind.MOE in used:
        if config.num_experts_per_tok > config.n_routed_experts:
            raise fields.refuse(
                "num_experts_per_tok",
                f"more than n_routed_experts {config.n_routed_experts}",
                "Correct one of the two.",
            )
        if config.n_routed_experts % config.n_group or config.topk_group > config.n_group:
            raise fields.refuse(
                "n_group",
                f"must divide n_routed_experts {config.n_routed_experts} and be at least "
                f"topk_group {config.topk_group}",
                "Correct one of them.",
            )


def parse_config(fields: Fields) -> ModelConfig:
    """Build the config from the fields of a config.json; see `ModelConfig.from_file`."""
    if fields.values.get("model_type") != "nemotron_h":
        raise fields.refuse(
            "model_type", "only 'nemotron_h' is supported", "Use a Nemotron-H checkpoint."
        )
    fields.choice("mlp_hidden_act", "relu2", ("relu2",))
    fields.choice("mamba_hidden_act", "silu", ("silu",))
    layers = _kinds(fields, "hybrid_override_pattern", "layers_block_type")
    mtp_layers = _mtp_kinds(fields)
    used = {*layers, *mtp_layers}
    patterned = fields.has("hybrid_override_pattern")
    if patterned and fields.integer("num_hidden_layers", len(layers)) != len(layers):
        raise fields.refuse(
            "num_hidden_layers",
            f"hybrid_override_pattern has {len(layers)} layers",
            "Correct one of the two.",
        )

    def size(name: str, kind: LayerKind, default: int | None = None) -> int:
        return fields.integer(name, default) if kind in used else 0

    attention, mamba, moe = LayerKind.ATTENTION, LayerKind.MAMBA, LayerKind.MOE
    heads = size("num_attention_heads", attention)
    head_dim_name = "head_dim" if fields.has("head_dim") else "attention_head_dim"
    routed = size("n_routed_experts", moe)
    bos, pad = fields.token_ids("bos_token_id"), fields.token_ids("pad_token_id")
    dtype_name = "dtype" if fields.has("dtype") else "torch_dtype"
    config = ModelConfig(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=fields.integer("hidden_size"),
        layers=layers,
        mtp_layers=mtp_layers,
        num_attention_heads=heads,
        num_key_value_heads=size("num_key_value_heads", attention, heads or None),
        head_dim=size(head_dim_name if fields.has(head_dim_name) else "head_dim", attention),
        attention_bias=fields.flag("attention_bias", False),
        intermediate_size=size("intermediate_size", LayerKind.MLP),
        mlp_bias=fields.flag("mlp_bias", False),
        mamba_num_heads=size("mamba_num_heads", mamba),
        mamba_head_dim=size("mamba_head_dim", mamba),
        mamba_groups=size("n_groups", mamba),
        ssm_state_size=size("ssm_state_size", mamba),
        conv_kernel=size("conv_kernel", mamba),
        chunk_size=size("chunk_size", mamba, 128),
        time_step_min=fields.number("time_step_min", 0.001),
        use_conv_bias=fields.flag("use_conv_bias", True),
        use_bias=fields.flag("use_bias", False),
        mamba_proj_bias=fields.flag("mamba_proj_bias", False),
        n_routed_experts=routed,
        num_experts_per_tok=size("num_experts_per_tok", moe),
        moe_intermediate_size=size("moe_intermediate_size", moe),
        moe_latent_size=(
            fields.integer("moe_latent_size") if fields.has("moe_latent_size") else None
        ),
        n_shared_experts=fields.integer("n_shared_experts", 1, minimum=0),
        moe_shared_expert_intermediate_size=size("moe_shared_expert_intermediate_size", moe),
        n_group=fields.integer("n_group", 1),
        topk_group=fields.integer("topk_group", 1),
        norm_topk_prob=fields.flag("norm_topk_prob", True),
        routed_scaling_factor=fields.number("routed_scaling_factor", 1.0),
        layer_norm_epsilon=fields.number("layer_norm_epsilon", 1e-5),
        tie_word_embeddings=fields.flag("tie_word_embeddings", False),
        max_position_embeddings=fields.integer("max_position_embeddings"),
        eos_token_ids=fields.token_ids("eos_token_id"),
        bos_token_id=bos[0] if bos else None,
        pad_token_id=pad[0] if pad else None,
        dtype=_DTYPES[fields.choice(dtype_name, "bfloat16", tuple(_DTYPES))],
    )
    _check(config, fields)
    return config
