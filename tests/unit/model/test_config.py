"""A config.json is read in both schemes; what is wrong with one is said with name and value."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from workers.model import CheckpointError, ModelConfig
from workers.model.config import LayerKind, parse_config
from workers.model.config_fields import Fields
from workers.training.shape import PUBLISHED_CONFIG, shipped_config


def parse(**changes: object) -> ModelConfig:
    values = {**PUBLISHED_CONFIG, **changes}
    return parse_config(Fields({k: v for k, v in values.items() if v is not ...}, "config.json"))


def test_the_shipped_shape() -> None:
    config = shipped_config()
    assert "".join(kind.value for kind in config.layers) == "MEM*EMEM*E"
    assert config.attention_layers == 2
    assert config.mamba_layers == 4
    assert config.mtp_attention_layers == 1
    assert config.conv_dim == 512 + 2 * 2 * 32
    assert config.expert_size == 64
    assert config.dtype == torch.bfloat16


def test_layer_names_mean_the_same_as_the_pattern() -> None:
    names = ["mamba", "moe", "attention", "mlp", "linear_attention", "full_attention"]
    config = parse(hybrid_override_pattern=..., num_hidden_layers=..., layers_block_type=names)
    assert config.layers == parse(hybrid_override_pattern="ME*-M*", num_hidden_layers=6).layers


def test_what_a_shape_does_not_use_may_be_absent() -> None:
    config = parse(
        hybrid_override_pattern="*-",
        num_hidden_layers=...,
        num_nextn_predict_layers=0,
        mamba_num_heads=...,
        ssm_state_size=...,
        n_routed_experts=...,
        num_experts_per_tok=...,
        moe_intermediate_size=...,
    )
    assert config.layers == (LayerKind.ATTENTION, LayerKind.MLP)
    assert config.mamba_layers == 0
    assert config.mtp_layers == ()


def test_several_end_tokens() -> None:
    assert parse(eos_token_id=[2, 4]).eos_token_ids == (2, 4)
    assert parse(eos_token_id=None).eos_token_ids == ()


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"model_type": "llama"}, ["'model_type' is 'llama'", "nemotron_h"]),
        ({"hidden_size": ...}, ["'hidden_size' is missing", "whole number >= 1"]),
        ({"hidden_size": "256"}, ["'hidden_size' is '256'"]),
        ({"hidden_size": True}, ["'hidden_size' is True"]),
        ({"layer_norm_epsilon": float("nan")}, ["'layer_norm_epsilon' is nan"]),
        ({"hybrid_override_pattern": "MEX"}, ["'hybrid_override_pattern' is 'MEX'", "M, E, *"]),
        ({"num_hidden_layers": 4}, ["'num_hidden_layers' is 4", "10 layers"]),
        ({"n_groups": 3}, ["'n_groups' is 3", "divide mamba_num_heads 8"]),
        ({"num_key_value_heads": 3}, ["'num_key_value_heads' is 3", "num_attention_heads 8"]),
        ({"num_experts_per_tok": 17}, ["'num_experts_per_tok' is 17", "n_routed_experts 16"]),
        ({"n_group": 5}, ["'n_group' is 5"]),
        ({"mlp_hidden_act": "silu"}, ["'mlp_hidden_act' is 'silu'", "relu2"]),
        ({"dtype": "float16"}, ["'dtype' is 'float16'", "bfloat16"]),
        ({"num_nextn_predict_layers": 2}, ["'num_nextn_predict_layers' is 2", "Set it to 1"]),
        ({"mtp_hybrid_override_pattern": "M"}, ["'mtp_hybrid_override_pattern' is 'M'"]),
        ({"eos_token_id": "x"}, ["'eos_token_id' is 'x'"]),
    ],
)
def test_a_bad_field_is_named(changes: dict[str, object], parts: list[str]) -> None:
    with pytest.raises(CheckpointError) as caught:
        parse(**changes)
    for part in [*parts, "config.json"]:
        assert part in str(caught.value)


def test_a_file_that_is_no_json_object_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{not json")
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        ModelConfig.from_file(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps([1]))
    with pytest.raises(CheckpointError, match="expected a JSON object"):
        ModelConfig.from_file(tmp_path)
