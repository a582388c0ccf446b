"""The shape of the shipped model, as the config.json it is published with.

Exists so that training, export and documentation share one description. Every mechanism of a
Nemotron 3 is there, each as small as it can be and still be exercised: several Mamba groups,
several KV heads, a latent narrower than the hidden size, more experts than a token uses.
"""

from __future__ import annotations

from workers.model.config import ModelConfig, parse_config
from workers.model.config_fields import Fields
from workers.training.tokenizer import BOS, EOS, PAD

PUBLISHED_CONFIG: dict[str, object] = {
    "architectures": ["NemotronHForCausalLM"],
    "model_type": "nemotron_h",
    "dtype": "bfloat16",
    "vocab_size": 2048,
    "hidden_size": 256,
    "num_hidden_layers": 10,
    "hybrid_override_pattern": "MEM*EMEM*E",
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "intermediate_size": 128,
    "mlp_hidden_act": "relu2",
    "mlp_bias": False,
    "mamba_num_heads": 8,
    "mamba_head_dim": 64,
    "expand": 2,
    "n_groups": 2,
    "ssm_state_size": 32,
    "conv_kernel": 4,
    "chunk_size": 64,
    "mamba_hidden_act": "silu",
    "mamba_proj_bias": False,
    "mamba_ssm_cache_dtype": "float32",
    "use_conv_bias": True,
    "use_bias": False,
    # Far below the usual 0.001: transformers bounds dt by it in the scan but not in the
    # one-token step, and a prompt should mean the same read at once or token by token.
    "time_step_min": 1e-6,
    "time_step_max": 0.1,
    "time_step_floor": 1e-4,
    "n_routed_experts": 16,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 128,
    "moe_latent_size": 64,
    "n_shared_experts": 1,
    "moe_shared_expert_intermediate_size": 256,
    "moe_shared_expert_overlap": False,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 5.0,
    "num_nextn_predict_layers": 1,
    "mtp_hybrid_override_pattern": "*E",
    "layer_norm_epsilon": 1e-5,
    "residual_in_fp32": False,
    "tie_word_embeddings": False,
    "max_position_embeddings": 8192,
    "initializer_range": 0.02,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
    "use_cache": True,
}


def shipped_config() -> ModelConfig:
    """The shape as the engine reads it."""
    return parse_config(Fields(PUBLISHED_CONFIG, "workers/training/shape.py"))
