"""The precision of every module is read from each of the shapes that exports have had."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from workers.checkpoint.quantisation import Form, Quantisation, parse_quantisation
from workers.model import CheckpointError
from workers.model.config_fields import Fields

NVFP4 = {"quant_algo": "NVFP4", "group_size": 16}


def parse(**values: object) -> Quantisation:
    return parse_quantisation(Fields(values, "config.json"))


def test_listed_layers_have_their_form_and_others_none() -> None:
    quantisation = parse(
        quant_method="modelopt",
        quant_algo="MIXED_PRECISION",
        quantized_layers={
            "backbone.layers.0.mixer.in_proj": {"quant_algo": "FP8"},
            "backbone.layers.1.mixer.experts.3.up_proj": NVFP4,
            "model.layers.2.mixer.o_proj": {"quant_algo": "W4A16_NVFP4", "group_size": 16},
            "lm_head": {"quant_algo": "FP8"},
        },
        kv_cache_scheme={"dynamic": False, "num_bits": 8, "type": "float"},
    )
    assert quantisation.form("layers.0.mixer.in_proj") is Form.FP8
    assert quantisation.form("layers.1.mixer.experts.3.up_proj") is Form.NVFP4
    assert quantisation.form("layers.2.mixer.o_proj") is Form.NVFP4
    assert quantisation.form("lm_head") is Form.FP8
    assert quantisation.form("layers.0.mixer.out_proj") is Form.PLAIN
    assert quantisation.form("layers.1.mixer.experts.30.up_proj") is Form.PLAIN
    assert quantisation.kv_scales


def test_a_listed_parent_speaks_for_what_is_below() -> None:
    quantisation = parse(
        quant_algo="MIXED_PRECISION",
        quantized_layers={
            "backbone.layers.1.mixer.experts": NVFP4,
            "backbone.layers.1.mixer.experts.2.up_proj": {"quant_algo": "FP8"},
        },
    )
    assert quantisation.form("layers.1.mixer.experts.7.down_proj") is Form.NVFP4
    assert quantisation.form("layers.1.mixer.experts.2.up_proj") is Form.FP8
    assert quantisation.form("layers.11.mixer.experts.7.down_proj") is Form.PLAIN
    assert not quantisation.kv_scales


def test_older_exports_name_modules_as_targets_of_groups() -> None:
    quantisation = parse(
        quant_method="modelopt",
        quant_algo="MIXED_PRECISION",
        config_groups={
            "group_0": {
                "weights": {"dynamic": False, "num_bits": 8, "type": "float"},
                "targets": ["backbone.layers.0.mixer.in_proj"],
            },
            "group_1": {
                "weights": {"num_bits": 4, "type": "float", "group_size": 16},
                "targets": ["backbone.layers.1.mixer.experts.0.up_proj"],
            },
        },
    )
    assert quantisation.form("layers.0.mixer.in_proj") is Form.FP8
    assert quantisation.form("layers.1.mixer.experts.0.up_proj") is Form.NVFP4
    assert quantisation.form("layers.1.mixer.experts.1.up_proj") is Form.PLAIN


@pytest.mark.parametrize("exceptions", ["ignore", "exclude_modules"])
def test_one_algorithm_for_all_but_the_exceptions(exceptions: str) -> None:
    quantisation = parse(
        quant_algo="NVFP4",
        group_size=16,
        kv_cache_quant_algo="FP8",
        **{exceptions: ["lm_head", "backbone.layers.4.mixer*", "mtp*", "backbone.layers.6.mixer"]},
    )
    assert quantisation.form("layers.5.mixer.in_proj") is Form.NVFP4
    for plain in (
        "lm_head",
        "layers.4.mixer.in_proj",
        "layers.6.mixer.q_proj",
        "mtp.layers.0.mixer.q_proj",
    ):
        assert quantisation.form(plain) is Form.PLAIN
    assert quantisation.kv_scales


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"quant_method": "gptq", "quant_algo": "FP8"}, ["'quant_method' is 'gptq'", "modelopt"]),
        ({"quant_algo": "FP8_PB_WO"}, ["'quant_algo' is 'FP8_PB_WO'", "Supported: FP8"]),
        ({"quant_algo": 8}, ["'quant_algo' is 8"]),
        ({"quant_algo": "NVFP4", "group_size": 32}, ["'group_size' is 32", "blocks of 16"]),
        ({"config_groups": {}}, ["'quant_algo' is missing"]),
        ({"quant_algo": "MIXED_PRECISION"}, ["'quantized_layers' is missing", "config_groups"]),
        (
            {"quant_algo": "MIXED_PRECISION", "quantized_layers": {"a.b": {"quant_algo": "INT4"}}},
            ["quantized_layers: a.b", "'quant_algo' is 'INT4'"],
        ),
        (
            {
                "quant_algo": "MIXED_PRECISION",
                "quantized_layers": {"a.b": {"quant_algo": "NVFP4", "group_size": 8}},
            },
            ["quantized_layers: a.b", "'group_size' is 8"],
        ),
        (
            {"quant_algo": "MIXED_PRECISION", "quantized_layers": ["a.b"]},
            ["'quantized_layers' is ['a.b']", "expected an object"],
        ),
        (
            {
                "quant_algo": "MIXED_PRECISION",
                "config_groups": {"g": {"weights": {"num_bits": 4, "type": "int"}}},
            },
            ["config_groups: g", "'targets' is missing"],
        ),
        (
            {
                "quant_algo": "MIXED_PRECISION",
                "config_groups": {
                    "g": {"weights": {"num_bits": 4, "type": "int"}, "targets": ["a"]}
                },
            },
            ["config_groups: g: weights", "'type' is 'int'"],
        ),
        (
            {
                "quant_algo": "MIXED_PRECISION",
                "config_groups": {
                    "g": {"weights": {"num_bits": 8, "strategy": "channel"}, "targets": ["a"]}
                },
            },
            ["config_groups: g: weights", "cannot be read"],
        ),
        (
            {"quant_algo": "MIXED_PRECISION", "config_groups": {"g": {"targets": ["a"]}}},
            ["config_groups: g", "'weights' is missing"],
        ),
    ],
)
def test_what_cannot_be_read_is_named(values: dict[str, object], parts: list[str]) -> None:
    with pytest.raises(CheckpointError) as caught:
        parse(**values)
    for part in ["config.json", *parts]:
        assert part in str(caught.value)


def test_config_json_comes_before_the_file_beside_it(tmp_path: Path) -> None:
    assert Quantisation.of_folder(tmp_path) == Quantisation()
    beside = {"quantization": {"quant_algo": "FP8"}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(beside))
    (tmp_path / "config.json").write_text("{}")
    assert Quantisation.of_folder(tmp_path).default is Form.FP8
    config = {"quantization_config": {"quant_algo": "NVFP4"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert Quantisation.of_folder(tmp_path).default is Form.NVFP4


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "hf_quant_config.json"
    file.write_text("{")
    with pytest.raises(CheckpointError, match=r"hf_quant_config\.json: cannot be read as JSON"):
        Quantisation.of_folder(tmp_path)
    file.write_text('{"quantization": 3}')
    with pytest.raises(CheckpointError, match="'quantization' is 3: expected an object"):
        Quantisation.of_folder(tmp_path)
