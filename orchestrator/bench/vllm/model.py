"""A dense model from a seed that vLLM runs on CPU, with the shipped tokenizer.

Time does not depend on what the weights are, so nothing has to be trained. It is small: the
smaller a step, the more what is around it shows.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

_SEED = 20261122
_HIDDEN, _LAYERS, _HEADS, _KV_HEADS, _HEAD_DIM, _MLP = 512, 8, 8, 2, 64, 1408


def write_dense_model(folder: Path, tokenizer_from: Path) -> None:
    """About 22 M parameters in Hugging Face layout, with the vocabulary of the tokenizer."""
    shipped = json.loads((tokenizer_from / "config.json").read_text(encoding="utf-8"))
    vocab = shipped["vocab_size"]
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": vocab,
        "hidden_size": _HIDDEN,
        "intermediate_size": _MLP,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _KV_HEADS,
        "head_dim": _HEAD_DIM,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": False,
        "bos_token_id": shipped["bos_token_id"],
        "eos_token_id": shipped["eos_token_id"],
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    generator = torch.Generator().manual_seed(_SEED)

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator).div_(columns**0.5)

    tensors = {
        "model.embed_tokens.weight": matrix(vocab, _HIDDEN),
        "lm_head.weight": matrix(vocab, _HIDDEN),
        "model.norm.weight": torch.ones(_HIDDEN),
    }
    for layer in range(_LAYERS):
        at = f"model.layers.{layer}"
        tensors |= {
            f"{at}.input_layernorm.weight": torch.ones(_HIDDEN),
            f"{at}.post_attention_layernorm.weight": torch.ones(_HIDDEN),
            f"{at}.self_attn.q_proj.weight": matrix(_HEADS * _HEAD_DIM, _HIDDEN),
            f"{at}.self_attn.k_proj.weight": matrix(_KV_HEADS * _HEAD_DIM, _HIDDEN),
            f"{at}.self_attn.v_proj.weight": matrix(_KV_HEADS * _HEAD_DIM, _HIDDEN),
            f"{at}.self_attn.o_proj.weight": matrix(_HIDDEN, _HEADS * _HEAD_DIM),
            f"{at}.mlp.gate_proj.weight": matrix(_MLP, _HIDDEN),
            f"{at}.mlp.up_proj.weight": matrix(_MLP, _HIDDEN),
            f"{at}.mlp.down_proj.weight": matrix(_HIDDEN, _MLP),
        }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer_from / name, folder / name)
