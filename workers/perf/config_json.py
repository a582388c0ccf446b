"""A model's spec from the object of a Hugging Face config.json, whatever the family.

Two schemas cover them. Nemotron-H lists one mixer for each layer (`hybrid_override_pattern`, or
`layers_block_type` as transformers 5 writes it). All others have attention (full, sliding, linear
or latent) and a feed-forward part (dense or experts) in each layer; which fields are there decides.
Field meanings follow the configuration classes of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from workers.perf.attention import Attention, GroupedAttention, LatentAttention
from workers.perf.config_fields import Fields
from workers.perf.mixers import Experts, Mlp, Recurrence, gated_delta_net, mamba2
from workers.perf.model_spec import ModelSpec, Stack

_LETTERS = {
    "M": "M",
    "mamba": "M",
    "linear_attention": "M",
    "E": "E",
    "moe": "E",
    "*": "*",
    "attention": "*",
    "full_attention": "*",
    "-": "-",
    "mlp": "-",
}
_EXPERT_COUNTS = ("n_routed_experts", "num_experts", "num_local_experts")
_QUERY_KEY_NORMS = ("qwen3", "qwen3_moe", "qwen3_next", "qwen3_5", "qwen3_5_moe")


def model_from_config(values: Mapping[str, object], name: str, source: str = "") -> ModelSpec:
    """Read the object of a config.json.

    Args:
        values: the parsed object; a multimodal model's language part is read from `text_config`.
        name: how messages and plans call the model.
        source: where the values come from.

    Raises:
        PerfError: a field is missing or cannot be what it says.
    """
    outer = Fields(values, source or name)
    fields = outer.inner("text_config") if outer.has("text_config") else outer
    nemotron = fields.has("hybrid_override_pattern") or fields.has("layers_block_type")
    stack, draft = _nemotron(fields) if nemotron else _transformer(fields)
    quantisation = fields.text_inside("quantization_config", "quant_method")
    return ModelSpec(
        name=name,
        hidden=fields.integer("hidden_size"),
        vocab=fields.integer("vocab_size"),
        stack=stack,
        max_tokens=fields.integer("max_position_embeddings", 131072),
        tied=fields.flag("tie_word_embeddings", _tied_by_default(fields)),
        draft=draft,
        published_weights=quantisation,
        source=source,
    )


def _tied_by_default(fields: Fields) -> bool:
    """What leaving `tie_word_embeddings` out means: transformers ties few families."""
    return fields.text("model_type", "").startswith(("gemma", "phi3small"))


def _nemotron(fields: Fields) -> tuple[Stack, Stack | None]:
    hidden = fields.integer("hidden_size")
    stack = _nemotron_stack(
        fields, _letters(fields, "hybrid_override_pattern", "layers_block_type"), hidden
    )
    if not fields.integer("num_nextn_predict_layers", 0, minimum=0):
        return stack, None
    letters = _letters(fields, "mtp_hybrid_override_pattern", "mtp_layers_block_type")
    # enorm, hnorm, final_layernorm and eh_proj (the published checkpoint).
    return stack, _nemotron_stack(fields, letters, hidden, 2 * hidden * hidden + 2 * hidden)


def _letters(fields: Fields, pattern: str, names: str) -> str:
    words: Sequence[str] = fields.text(pattern, "") if fields.has(pattern) else fields.words(names)
    unknown = sorted(set(words) - set(_LETTERS))
    if unknown or not words:
        name = pattern if fields.has(pattern) else names
        raise fields.refuse(name, f"unknown layer kinds {unknown}", "Known: M, E, *, -.")
    return "".join(_LETTERS[word] for word in words)


def _nemotron_stack(fields: Fields, letters: str, hidden: int, other: int = 0) -> Stack:
    attention, mamba, moe, mlp = (letters.count(letter) for letter in "*ME-")
    return Stack(
        attention=(_grouped(fields, attention, hidden),) if attention else (),
        recurrence=(_mamba2(fields, mamba, hidden),) if mamba else (),
        experts=(_nemotron_experts(fields, moe, hidden),) if moe else (),
        mlp=(Mlp(mlp, hidden, fields.integer("intermediate_size"), False),) if mlp else (),
        blocks=len(letters),
        other=(len(letters) + 1) * hidden + other,
    )


def _mamba2(fields: Fields, layers: int, hidden: int) -> Recurrence:
    return mamba2(
        layers=layers,
        hidden=hidden,
        heads=fields.integer("mamba_num_heads"),
        head_dim=fields.integer("mamba_head_dim"),
        groups=fields.integer("n_groups"),
        state=fields.integer("ssm_state_size"),
        conv_kernel=fields.integer("conv_kernel"),
        chunk=fields.integer("chunk_size", 128),
        conv_bias=fields.flag("use_conv_bias", True),
    )


def _nemotron_experts(fields: Fields, layers: int, hidden: int) -> Experts:
    count = fields.integer("n_routed_experts")
    return Experts(
        layers=layers,
        hidden=hidden,
        count=count,
        top_k=fields.integer("num_experts_per_tok"),
        expert_hidden=fields.integer("moe_intermediate_size"),
        gated=False,
        latent=fields.integer("moe_latent_size") if fields.has("moe_latent_size") else None,
        shared_hidden=fields.integer("moe_shared_expert_intermediate_size")
        * fields.integer("n_shared_experts", 1, minimum=0),
        router_extras=count,
    )


def _grouped(
    fields: Fields, layers: int, hidden: int, window: int | None = None
) -> GroupedAttention:
    heads = fields.integer("num_attention_heads")
    head_dim = fields.integer("head_dim", max(1, hidden // heads))
    kind = fields.text("model_type", "").removesuffix("_text")
    sinks = heads if kind == "gpt_oss" else 0
    return GroupedAttention(
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=fields.integer("num_key_value_heads", heads),
        head_dim=head_dim,
        window=window,
        bias=fields.flag("attention_bias", kind == "qwen2"),
        gated=fields.flag("attn_output_gate", kind in ("qwen3_next", "qwen3_5", "qwen3_5_moe")),
        norms=(2 * head_dim if kind in _QUERY_KEY_NORMS else 0) + sinks,
    )


def _latent(fields: Fields, layers: int, hidden: int) -> LatentAttention:
    return LatentAttention(
        layers=layers,
        hidden=hidden,
        heads=fields.integer("num_attention_heads"),
        query_rank=fields.integer("q_lora_rank", 0, minimum=0),
        kv_rank=fields.integer("kv_lora_rank"),
        nope_dim=fields.integer("qk_nope_head_dim"),
        rope_dim=fields.integer("qk_rope_head_dim"),
        value_dim=fields.integer("v_head_dim"),
    )


def _transformer(fields: Fields) -> tuple[Stack, Stack | None]:
    layers = fields.integer("num_hidden_layers")
    kinds = _attention_kinds(fields, layers)
    sparse = _sparse_layers(fields, layers)
    stack = _transformer_stack(fields, kinds, sparse)
    drafts = max(
        fields.integer("num_nextn_predict_layers", 0, minimum=0),
        fields.integer("mtp_num_hidden_layers", 0, minimum=0),
    )
    if not drafts:
        return stack, None
    hidden = fields.integer("hidden_size")
    # Weights beyond the first block repeat it; one block is applied again for each draft.
    other = 2 * hidden * hidden + 2 * hidden
    full = next((kind for kind in kinds if kind == "full_attention"), kinds[0])
    return stack, _transformer_stack(fields, [full], 1 if sparse else 0, other)


def _attention_kinds(fields: Fields, layers: int) -> list[str]:
    if fields.has("layer_types"):
        kinds = list(fields.words("layer_types"))
        if len(kinds) != layers:
            raise fields.refuse(
                "layer_types", f"names {len(kinds)} layers of {layers}", "Correct one of them."
            )
        return kinds
    kind = fields.text("model_type", "").removesuffix("_text")
    if kind == "gpt_oss":
        return [("sliding_attention", "full_attention")[layer % 2] for layer in range(layers)]
    if kind in ("qwen3_next", "qwen3_5", "qwen3_5_moe"):
        every = fields.integer("full_attention_interval", 4)
        return [
            "linear_attention" if (layer + 1) % every else "full_attention"
            for layer in range(layers)
        ]
    sliding = fields.has("sliding_window") and fields.flag(
        "use_sliding_window", kind in ("mistral", "mixtral")
    )
    return ["sliding_attention" if sliding else "full_attention"] * layers


def _sparse_layers(fields: Fields, layers: int) -> int:
    """How many layers have experts."""
    if not any(fields.has(name) for name in _EXPERT_COUNTS):
        return 0
    dense = set(range(fields.integer("first_k_dense_replace", 0, minimum=0)))
    dense |= set(fields.integers("mlp_only_layers"))
    step = fields.integer("decoder_sparse_step", fields.integer("moe_layer_freq", 1))
    return sum(1 for layer in range(layers) if layer not in dense and (layer + 1) % step == 0)


def _transformer_stack(fields: Fields, kinds: Sequence[str], sparse: int, other: int = 0) -> Stack:
    hidden = fields.integer("hidden_size")
    dense = len(kinds) - sparse
    return Stack(
        attention=_attention(fields, kinds, hidden),
        recurrence=_linear(fields, kinds, hidden),
        experts=(_experts(fields, sparse, hidden),) if sparse else (),
        mlp=(Mlp(dense, hidden, fields.integer("intermediate_size"), True),) if dense else (),
        blocks=len(kinds),
        other=(2 * len(kinds) + 1) * hidden + other,
    )


def _attention(fields: Fields, kinds: Sequence[str], hidden: int) -> tuple[Attention, ...]:
    unknown = sorted(set(kinds) - {"full_attention", "sliding_attention", "linear_attention"})
    if unknown:
        raise fields.refuse(
            "layer_types", f"unknown kinds {unknown}", "Known: full, sliding, linear_attention."
        )
    full, sliding = kinds.count("full_attention"), kinds.count("sliding_attention")
    if fields.has("kv_lora_rank"):
        return (_latent(fields, full + sliding, hidden),)
    groups = []
    if full:
        groups.append(_grouped(fields, full, hidden))
    if sliding:
        groups.append(_grouped(fields, sliding, hidden, fields.integer("sliding_window")))
    return tuple(groups)


def _linear(fields: Fields, kinds: Sequence[str], hidden: int) -> tuple[Recurrence, ...]:
    layers = kinds.count("linear_attention")
    if not layers:
        return ()
    return (
        gated_delta_net(
            layers=layers,
            hidden=hidden,
            key_heads=fields.integer("linear_num_key_heads"),
            value_heads=fields.integer("linear_num_value_heads"),
            key_dim=fields.integer("linear_key_head_dim"),
            value_dim=fields.integer("linear_value_head_dim"),
            conv_kernel=fields.integer("linear_conv_kernel_dim", 4),
        ),
    )


def _experts(fields: Fields, layers: int, hidden: int) -> Experts:
    count = fields.integer(next(name for name in _EXPERT_COUNTS if fields.has(name)))
    expert_hidden = fields.integer(
        "moe_intermediate_size" if fields.has("moe_intermediate_size") else "intermediate_size"
    )
    gpt_oss = fields.text("model_type", "") == "gpt_oss"
    bias = count if gpt_oss or fields.text("topk_method", "") == "noaux_tc" else 0
    if fields.has("shared_expert_intermediate_size"):
        shared = fields.integer("shared_expert_intermediate_size")
    else:
        shared = fields.integer("n_shared_experts", 0, minimum=0) * expert_hidden
    return Experts(
        layers=layers,
        hidden=hidden,
        count=count,
        top_k=fields.integer("num_experts_per_tok"),
        expert_hidden=expert_hidden,
        gated=True,
        shared_hidden=shared,
        router_extras=bias,
        expert_bias=gpt_oss,
        shared_gate=fields.has("shared_expert_intermediate_size"),
    )
