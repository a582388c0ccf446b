"""Models that can be planned for by name, as the fields of their config.json that matter here.

Sources: the published config.json of each checkpoint, but for Nemotron 3 Super (a transcription
whose inventory of tensors has exactly the bytes of the release) and Qwen3.5-122B (see there).
"""

from __future__ import annotations

import re
from functools import cache

from workers.perf.config_json import model_from_config
from workers.perf.errors import PerfError
from workers.perf.model_spec import ModelSpec

_CONFIGS: dict[str, dict[str, object]] = {
    "nemotron-3-super": {
        "model_type": "nemotron_h",
        "hidden_size": 4096,
        "vocab_size": 131072,
        "hybrid_override_pattern": (
            "MEMEMEM*EMEMEMEM*EMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*"
            "EMEMEMEMEM*EMEMEMEMEM*EMEMEMEM*EMEMEMEME"
        ),
        "num_attention_heads": 32,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "mamba_num_heads": 128,
        "mamba_head_dim": 64,
        "n_groups": 8,
        "ssm_state_size": 128,
        "conv_kernel": 4,
        "n_routed_experts": 512,
        "num_experts_per_tok": 22,
        "moe_intermediate_size": 2688,
        "moe_latent_size": 1024,
        "moe_shared_expert_intermediate_size": 5376,
        "num_nextn_predict_layers": 1,
        "mtp_hybrid_override_pattern": "*E",
        "max_position_embeddings": 262144,
    },
    "nemotron-3-nano": {
        "model_type": "nemotron_h",
        "hidden_size": 2688,
        "vocab_size": 131072,
        "hybrid_override_pattern": "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
        "num_attention_heads": 32,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "mamba_num_heads": 64,
        "mamba_head_dim": 64,
        "n_groups": 8,
        "ssm_state_size": 128,
        "conv_kernel": 4,
        "n_routed_experts": 128,
        "num_experts_per_tok": 6,
        "moe_intermediate_size": 1856,
        "moe_shared_expert_intermediate_size": 3712,
        "max_position_embeddings": 262144,
    },
    "deepseek-r1": {
        "model_type": "deepseek_v3",
        "hidden_size": 7168,
        "vocab_size": 129280,
        "num_hidden_layers": 61,
        "first_k_dense_replace": 3,
        "intermediate_size": 18432,
        "num_attention_heads": 128,
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "n_routed_experts": 256,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 2048,
        "n_shared_experts": 1,
        "topk_method": "noaux_tc",
        "num_nextn_predict_layers": 1,
        "max_position_embeddings": 163840,
    },
    "llama-3.1-405b": {
        "model_type": "llama",
        "hidden_size": 16384,
        "vocab_size": 128256,
        "num_hidden_layers": 126,
        "num_attention_heads": 128,
        "num_key_value_heads": 8,
        "intermediate_size": 53248,
        "max_position_embeddings": 131072,
    },
    "llama-3.1-70b": {
        "model_type": "llama",
        "hidden_size": 8192,
        "vocab_size": 128256,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "intermediate_size": 28672,
        "max_position_embeddings": 131072,
    },
    "llama-3.1-8b": {
        "model_type": "llama",
        "hidden_size": 4096,
        "vocab_size": 128256,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "max_position_embeddings": 131072,
    },
    "gpt-oss-120b": {
        "model_type": "gpt_oss",
        "hidden_size": 2880,
        "vocab_size": 201088,
        "num_hidden_layers": 36,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "attention_bias": True,
        "sliding_window": 128,
        "num_local_experts": 128,
        "num_experts_per_tok": 4,
        "intermediate_size": 2880,
        "max_position_embeddings": 131072,
        "quantization_config": {"quant_method": "mxfp4"},
    },
    "qwen3-235b": {
        "model_type": "qwen3_moe",
        "hidden_size": 4096,
        "vocab_size": 151936,
        "num_hidden_layers": 94,
        "num_attention_heads": 64,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 1536,
        "intermediate_size": 12288,
        "max_position_embeddings": 262144,
    },
    # The family's architecture is transformers' qwen3_5_moe; layers, experts and vocabulary are
    # published (48 layers of which 12 attend, 256 experts, 8 + 1 active, 248,320 tokens). The
    # other sizes could not be read from the config; they are those that make 122 B, 10 B active.
    "qwen3.5-122b": {
        "model_type": "qwen3_5_moe_text",
        "hidden_size": 3072,
        "vocab_size": 248320,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 64,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "num_experts": 256,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 1024,
        "shared_expert_intermediate_size": 1024,
        "mtp_num_hidden_layers": 1,
        "max_position_embeddings": 262144,
    },
}

KNOWN_MODELS: tuple[str, ...] = tuple(_CONFIGS)


@cache
def known_model(name: str) -> ModelSpec:
    """A built-in model by name: case and punctuation do not matter, nor what follows the name.

    Raises:
        PerfError: no built-in model is called that.
    """
    wanted = _plain(name)
    for known, config in _CONFIGS.items():
        if wanted == _plain(known) or wanted.startswith(_plain(known)):
            return model_from_config(config, known, f"built in: {known}")
    raise PerfError(
        f"model {name!r}: no such built-in model; choose one of {', '.join(KNOWN_MODELS)}, or give "
        "a folder with a config.json"
    )


def _plain(name: str) -> str:
    letters = re.sub(r"[^a-z0-9]", "", name.rpartition("/")[2].lower())
    return letters.removeprefix("nvidia").removeprefix("meta")
