"""Model specs have the parameters, KV and state that the models are published with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from workers.perf.attention import GroupedAttention
from workers.perf.config_json import model_from_config
from workers.perf.errors import PerfError
from workers.perf.known_models import KNOWN_MODELS, known_model
from workers.perf.model_spec import ModelSpec

_SUPER = Path(__file__).parents[1] / "checkpoint/data/super_config.json"
_DENSE: dict[str, object] = {
    "model_type": "llama",
    "hidden_size": 64,
    "vocab_size": 100,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
}


@pytest.mark.parametrize(
    ("name", "billions", "active_billions"),
    [
        ("nemotron-3-super", 120.67, 12.77),
        ("nemotron-3-nano", 31.58, 3.58),
        ("deepseek-r1", 671.03, 37.55),
        ("llama-3.1-405b", 405.85, 405.85),
        ("llama-3.1-70b", 70.55, 70.55),
        ("llama-3.1-8b", 8.03, 8.03),
        ("gpt-oss-120b", 116.83, 5.71),
        ("qwen3-235b", 235.09, 22.19),
        ("qwen3.5-122b", 122.11, 9.77),
    ],
)
def test_built_in_models_have_their_published_size(
    name: str, billions: float, active_billions: float
) -> None:
    model = known_model(name)
    assert model.parameters / 1e9 == pytest.approx(billions, abs=0.006)
    assert model.active_parameters / 1e9 == pytest.approx(active_billions, abs=0.006)


def test_every_built_in_model_is_found_under_the_name_of_its_checkpoint() -> None:
    assert known_model("nvidia/Nemotron-3-Super-120B-A12B-NVFP4").name == "nemotron-3-super"
    assert known_model("meta-llama/Llama-3.1-70B-Instruct").name == "llama-3.1-70b"
    assert known_model("openai/gpt-oss-120b").name == "gpt-oss-120b"
    assert len({known_model(name).name for name in KNOWN_MODELS}) == len(KNOWN_MODELS)


def test_an_unknown_model_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(PerfError, match=r"'gpt-9'.*nemotron-3-super"):
        known_model("gpt-9")


def test_nemotron_super_keeps_kv_in_its_attention_layers_alone() -> None:
    stack = known_model("nemotron-3-super").stack
    assert stack.kv_elements_per_token == 4096
    assert stack.state_elements == 41_943_040
    assert stack.conv_elements == 40 * 10240 * 3


def test_the_published_config_and_the_built_in_model_are_the_same() -> None:
    values = json.loads(_SUPER.read_text())
    read = model_from_config(values, "nemotron-3-super")
    built_in = known_model("nemotron-3-super")
    assert (read.stack, read.draft) == (built_in.stack, built_in.draft)


def test_a_list_of_layer_names_reads_like_the_pattern() -> None:
    values = json.loads(_SUPER.read_text())
    names = {"M": "mamba", "E": "moe", "*": "attention", "-": "mlp"}
    pattern = values.pop("hybrid_override_pattern")
    values["layers_block_type"] = [names[letter] for letter in pattern]
    assert model_from_config(values, "x").stack == known_model("nemotron-3-super").stack


def test_the_language_part_of_a_multimodal_config_is_read() -> None:
    assert model_from_config({"text_config": _DENSE}, "x").stack == _dense().stack


def test_tied_embeddings_count_once() -> None:
    tied = model_from_config(_DENSE | {"tie_word_embeddings": True}, "x")
    assert _dense().parameters - tied.parameters == 100 * 64


def test_sliding_layers_have_a_window_and_full_layers_none() -> None:
    groups = known_model("gpt-oss-120b").stack.attention
    assert all(isinstance(group, GroupedAttention) for group in groups)
    assert {(group.layers, group.window) for group in groups} == {(18, 128), (18, None)}


def test_latent_attention_caches_one_vector_for_all_heads() -> None:
    group = known_model("deepseek-r1").stack.attention[0]
    assert (group.kv_heads, group.cached_elements) == (1, 576)


def test_dense_layers_before_the_experts_are_counted() -> None:
    stack = known_model("deepseek-r1").stack
    assert (stack.mlp[0].layers, stack.experts[0].layers) == (3, 58)


def test_mixtral_counts_its_intermediate_size_as_that_of_an_expert() -> None:
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "model_type": "mixtral"}
    stack = model_from_config(_DENSE | experts, "x").stack
    assert (stack.experts[0].count, stack.experts[0].expert_hidden, stack.mlp) == (4, 96, ())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hidden_size": None}, "field 'hidden_size' is None: expected a whole number >= 1"),
        ({"num_attention_heads": "4"}, "field 'num_attention_heads' is '4'"),
        ({"layer_types": ["full_attention"]}, "names 1 layers of 3"),
        ({"layer_types": ["full_attention", "magic", "magic"]}, r"unknown kinds \['magic'\]"),
        ({"layers_block_type": ["magic"]}, r"unknown layer kinds \['magic'\]"),
    ],
)
def test_a_config_that_cannot_be_is_refused_by_field(change: dict[str, object], says: str) -> None:
    with pytest.raises(PerfError, match=says):
        model_from_config(_DENSE | change, "x")


def _dense() -> ModelSpec:
    return model_from_config(_DENSE, "x")
