"""What contenders are given: prompts that never repeat, and models that are the same each time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from orchestrator.bench.engine.comparisons import mixed_lengths
from orchestrator.bench.models import HUNDRED_MILLION, HybridShape, made_model, without_experts
from orchestrator.bench.prompts import PromptSource
from workers.checkpoint import Checkpoint
from workers.checkpoint.schema import model_schema
from workers.model.config import LayerKind, ModelConfig

SMALL = HybridShape(
    hybrid_override_pattern="M-*",
    vocab_size=64,
    hidden_size=16,
    intermediate_size=24,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    mamba_num_heads=2,
    mamba_head_dim=16,
    n_groups=1,
    ssm_state_size=8,
    conv_kernel=4,
    chunk_size=8,
)


def test_a_label_deals_the_same_prompts_and_another_label_others() -> None:
    for source in (PromptSource(None, 1000), PromptSource(np.arange(5000), 5000)):
        dealt = source.deal("a", 3, 50)
        assert dealt == source.deal("a", 3, 50)
        assert dealt != source.deal("b", 3, 50)
        assert [len(prompt) for prompt in dealt] == [50] * 3
        assert len({tuple(prompt) for prompt in dealt}) == 3


def test_prompts_of_text_are_pieces_of_it() -> None:
    (prompt,) = PromptSource(np.arange(5000), 5000).deal("a", 1, 20)
    assert prompt == list(range(prompt[0], prompt[0] + 20))


def test_without_a_tokenizer_prompts_are_random_tokens(tmp_path: Path) -> None:
    source = PromptSource.of_model(tmp_path, 100)
    assert source.kind == "random tokens"
    assert all(0 <= token < 100 for token in source.deal("a", 1, 200)[0])


def test_a_made_model_is_a_checkpoint_that_loads_and_is_the_same_each_time(tmp_path: Path) -> None:
    first = made_model("small", SMALL, tmp_path / "one")
    second = made_model("small", SMALL, tmp_path / "two")
    assert first.name == second.name
    assert made_model("small", SMALL, tmp_path / "one") == first
    config = ModelConfig.from_file(first)
    assert set(Checkpoint(first, config).load(torch.float32)) == set(model_schema(config))
    weights, again = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert [child.name for child in (tmp_path / "one").iterdir()] == [first.name]


def test_the_large_hybrid_has_about_a_hundred_million_parameters(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(_document(HUNDRED_MILLION), encoding="utf-8")
    schema = model_schema(ModelConfig.from_file(tmp_path))
    parameters = sum(int(np.prod(expected.shape)) for expected in schema.values())
    assert 95e6 < parameters < 105e6


def test_a_model_without_experts_keeps_everything_else(tmp_path: Path) -> None:
    given = Path("workers/checkpoints/tandem-tiny/config.json")
    config = ModelConfig.from_file(given) if given.exists() else None
    if config is None:
        (tmp_path / "config.json").write_text(_document(SMALL), encoding="utf-8")
        config = ModelConfig.from_file(tmp_path)
    shape = without_experts(config)
    assert len(shape.hybrid_override_pattern) == len(config.layers)
    assert LayerKind.MOE.value not in shape.hybrid_override_pattern
    assert (shape.hidden_size, shape.vocab_size) == (config.hidden_size, config.vocab_size)


def test_mixed_lengths_span_what_they_are_asked_to_and_do_not_change() -> None:
    lengths = mixed_lengths(64, 16, 256)
    assert lengths == mixed_lengths(64, 16, 256)
    assert min(lengths) >= 16
    assert max(lengths) <= 256
    assert max(lengths) > 2 * min(lengths)


def _document(shape: HybridShape) -> str:
    import json

    return json.dumps(shape.document())
