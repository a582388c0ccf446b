"""Which tensors a model of a given shape must have, by canonical name.

Exists so that loading, checking and exporting read the same list. Canonical names are the
published ones without the `backbone.` prefix, with the experts of a layer stacked:
`layers.3.mixer.experts.up_proj` is [E, m, l].
"""

from __future__ import annotations

from dataclasses import dataclass

from workers.model.config import LayerKind, ModelConfig

EXPERTS_UP = "mixer.experts.up_proj"
EXPERTS_DOWN = "mixer.experts.down_proj"


@dataclass(frozen=True, slots=True)
class Expected:
    """Shape of a tensor, whether a checkpoint may leave it out, and whether it is a linear layer's.

    Only matrices of linear layers are ever quantised; embeddings, router and convolution are not.
    """

    shape: tuple[int, ...]
    optional: bool = False
    linear: bool = False


Schema = dict[str, Expected]

_PREFIXES = ("backbone.", "model.")
_TOP_LEVEL = ("mtp.", "lm_head.")


def canonical_name(stored: str) -> str:
    """A tensor's or module's name without the prefix of its naming scheme."""
    for prefix in _PREFIXES:
        if stored.startswith(prefix):
            return stored.removeprefix(prefix)
    return stored


def published_name(canonical: str) -> str:
    """The name that published checkpoints give a tensor or module."""
    return canonical if canonical.startswith(_TOP_LEVEL) else f"backbone.{canonical}"


def _mamba(config: ModelConfig) -> Schema:
    heads, inner, d = config.mamba_num_heads, config.mamba_inner, config.hidden_size
    rows = inner + config.conv_dim + heads
    schema = {
        "mixer.in_proj.weight": Expected((rows, d), linear=True),
        "mixer.conv1d.weight": Expected((config.conv_dim, 1, config.conv_kernel)),
        "mixer.A_log": Expected((heads,)),
        "mixer.D": Expected((heads,)),
        "mixer.dt_bias": Expected((heads,)),
        "mixer.norm.weight": Expected((inner,)),
        "mixer.out_proj.weight": Expected((d, inner), linear=True),
    }
    if config.use_conv_bias:
        schema["mixer.conv1d.bias"] = Expected((config.conv_dim,))
    if config.use_bias or config.mamba_proj_bias:
        # transformers follows use_bias alone, so mamba_proj_bias may promise what is not there.
        optional = not config.use_bias
        schema["mixer.in_proj.bias"] = Expected((rows,), optional)
        schema["mixer.out_proj.bias"] = Expected((d,), optional)
    return schema


def _attention(config: ModelConfig) -> Schema:
    d, kv = config.hidden_size, config.key_value_size
    shapes = {"q": (config.query_size, d), "k": (kv, d), "v": (kv, d), "o": (d, config.query_size)}
    schema = {
        f"mixer.{name}_proj.weight": Expected(shape, linear=True) for name, shape in shapes.items()
    }
    if config.attention_bias:
        # transformers writes none even when attention_bias is true.
        for name, shape in shapes.items():
            schema[f"mixer.{name}_proj.bias"] = Expected((shape[0],), optional=True)
    return schema


def _linear(name: str, rows: int, columns: int, bias: bool, optional: bool = False) -> Schema:
    schema = {f"{name}.weight": Expected((rows, columns), optional, linear=True)}
    if bias:
        schema[f"{name}.bias"] = Expected((rows,), optional)
    return schema


def _mlp(prefix: str, config: ModelConfig, size: int, optional: bool = False) -> Schema:
    d, bias = config.hidden_size, config.mlp_bias
    return {
        **_linear(f"{prefix}.up_proj", size, d, bias, optional),
        **_linear(f"{prefix}.down_proj", d, size, bias, optional),
    }


def _moe(config: ModelConfig) -> Schema:
    d, narrow, bias = config.hidden_size, config.expert_size, config.mlp_bias
    experts, size = config.n_routed_experts, config.moe_intermediate_size
    schema = {
        "mixer.gate.weight": Expected((experts, d)),
        "mixer.gate.e_score_correction_bias": Expected((experts,)),
        EXPERTS_UP: Expected((experts, size, narrow), linear=True),
        EXPERTS_DOWN: Expected((experts, narrow, size), linear=True),
        # transformers writes a shared expert even for n_shared_experts 0.
        **_mlp(
            "mixer.shared_experts",
            config,
            config.moe_shared_expert_intermediate_size,
            optional=config.n_shared_experts == 0,
        ),
    }
    if config.moe_latent_size is not None:
        schema |= _linear("mixer.fc1_latent_proj", narrow, d, bias)
        schema |= _linear("mixer.fc2_latent_proj", d, narrow, bias)
    return schema


def layer_schema(kind: LayerKind, config: ModelConfig) -> Schema:
    """Tensors of one layer, names relative to it."""
    norm = {"norm.weight": Expected((config.hidden_size,))}
    match kind:
        case LayerKind.MAMBA:
            return norm | _mamba(config)
        case LayerKind.ATTENTION:
            return norm | _attention(config)
        case LayerKind.MOE:
            return norm | _moe(config)
        case LayerKind.MLP:
            return norm | _mlp("mixer", config, config.intermediate_size)


def model_schema(config: ModelConfig) -> Schema:
    """All tensors of the backbone and the head; lm_head is optional when it is tied."""
    table = (config.vocab_size, config.hidden_size)
    schema = {
        "embeddings.weight": Expected(table),
        "norm_f.weight": Expected((config.hidden_size,)),
        "lm_head.weight": Expected(table, optional=config.tie_word_embeddings, linear=True),
    }
    for index, kind in enumerate(config.layers):
        for name, expected in layer_schema(kind, config).items():
            schema[f"layers.{index}.{name}"] = expected
    return schema


def mtp_schema(config: ModelConfig) -> Schema:
    """All tensors of the MTP block; empty when the model has none."""
    d = config.hidden_size
    schema: Schema = {}
    for index, kind in enumerate(config.mtp_layers):
        for name, expected in layer_schema(kind, config).items():
            schema[f"mtp.layers.{index}.{name}"] = expected
    if schema:
        last = len(config.mtp_layers) - 1
        schema["mtp.layers.0.enorm.weight"] = Expected((d,))
        schema["mtp.layers.0.hnorm.weight"] = Expected((d,))
        schema["mtp.layers.0.eh_proj.weight"] = Expected((d, 2 * d), linear=True)
        schema[f"mtp.layers.{last}.final_layernorm.weight"] = Expected((d,))
    return schema
