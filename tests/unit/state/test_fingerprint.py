"""The fingerprint of a model changes with its shape, its tensors and its weights, and only then."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from workers.model.config import LayerKind, ModelConfig, parse_config
from workers.model.config_fields import Fields
from workers.model.errors import CheckpointError
from workers.state.fingerprint import model_fingerprint

CONFIG = parse_config(
    Fields(
        {
            "model_type": "nemotron_h",
            "hybrid_override_pattern": "M*",
            "vocab_size": 32,
            "hidden_size": 8,
            "max_position_embeddings": 64,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 4,
            "mamba_num_heads": 2,
            "mamba_head_dim": 8,
            "n_groups": 1,
            "ssm_state_size": 4,
            "conv_kernel": 4,
            "eos_token_id": 2,
        },
        "config.json",
    )
)


def _weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {f"layer.{i}": torch.randn(3, 5, generator=generator) for i in range(4)}


def _fingerprint(
    folder: Path, *files: dict[str, torch.Tensor], config: ModelConfig = CONFIG
) -> str:
    folder.mkdir()
    for number, tensors in enumerate(files):
        save_file(tensors, folder / f"model-{number}.safetensors", metadata={"format": "pt"})
    return model_fingerprint(config, folder)


def test_a_copy_has_the_same_fingerprint_also_when_sharded_otherwise(tmp_path: Path) -> None:
    weights = _weights()
    names = sorted(weights)
    whole = _fingerprint(tmp_path / "a", weights)
    halves = [{name: weights[name] for name in part} for part in (names[2:], names[:2])]
    assert _fingerprint(tmp_path / "b", *halves) == whole
    assert len(whole) == 32


def test_other_weights_names_shapes_or_configs_have_other_fingerprints(tmp_path: Path) -> None:
    weights = _weights()
    tuned = weights | {"layer.2": weights["layer.2"] + 0.01}
    renamed = {name.replace("layer", "block"): tensor for name, tensor in weights.items()}
    reshaped = weights | {"layer.2": weights["layer.2"].reshape(5, 3)}
    found = [
        _fingerprint(tmp_path / str(number), tensors)
        for number, tensors in enumerate((weights, tuned, renamed, reshaped))
    ]
    deeper = dataclasses.replace(CONFIG, layers=(LayerKind.MAMBA, LayerKind.MOE))
    found.append(_fingerprint(tmp_path / "c", weights, config=deeper))
    assert len(set(found)) == 5


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no \*.safetensors file"):
        model_fingerprint(CONFIG, tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff" * 40, b"\x04\0\0\0\0\0\0\0[1]x"])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not a readable"):
        model_fingerprint(CONFIG, tmp_path)
