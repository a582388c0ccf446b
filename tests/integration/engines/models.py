"""Tiny models from a seed that an engine of each kind can serve."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.reference_models import Shape, write_reference

_SHIPPED = Path(__file__).parents[3] / "workers" / "checkpoints" / "tandem-tiny"


def write_hybrid(folder: Path) -> None:
    """Attention, Mamba and experts, as the native engine has them."""
    write_reference(folder, Shape(pattern="M*EM"), seed=11)


def write_limits(folder: Path) -> None:
    """What a simulated engine reads: no weights."""
    limits = {"max_position_embeddings": 2048, "vocab_size": 97}
    (folder / "config.json").write_text(json.dumps(limits))


def write_llama(folder: Path) -> None:
    """A dense model with grouped queries; large random weights, so that answers differ."""
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=2048,  # of the tokenizer below
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        initializer_range=0.3,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    # vLLM asks for no tokenizer; whoever serves text does.
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(_SHIPPED / name, folder / name)
