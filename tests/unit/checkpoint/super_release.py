"""The published Nemotron 3 Super NVFP4 release (arXiv 2604.12374), tensor by tensor.

Written from the release's own names and numbers, not from the code that is tested: a public check
of the release counts 165,860 tensors and 80,297,329,824 bytes, which this list gives.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from workers.checkpoint.quantisation import Quantisation, parse_quantisation
from workers.model.config import ModelConfig, parse_config
from workers.model.config_fields import Fields

DATA = Path(__file__).parent / "data"
CONFIG = json.loads((DATA / "super_config.json").read_text(encoding="utf-8"))
PRECISION = json.loads((DATA / "super_precision.json").read_text(encoding="utf-8"))
PATTERN: str = CONFIG["hybrid_override_pattern"]
TENSORS, BYTES = 165_860, 80_297_329_824
EXPERTS = 512


@dataclass(frozen=True, slots=True)
class Published:
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


def super_config() -> ModelConfig:
    return parse_config(Fields(CONFIG, "config.json"))


def precision() -> dict[str, str]:
    """Module -> algorithm, for every quantised module of the release."""
    forms = {
        f"backbone.layers.{layer}.mixer.experts.{expert}.{matrix}": PRECISION["routed_experts"]
        for layer, kind in enumerate(PATTERN)
        if kind == "E"
        for expert in range(EXPERTS)
        for matrix in ("up_proj", "down_proj")
    }
    for algorithm in ("NVFP4", "FP8"):
        for leaf, layers in PRECISION[algorithm].items():
            forms |= {f"backbone.layers.{layer}.mixer.{leaf}": algorithm for layer in layers}
    return forms


def quantisation_of(forms: Mapping[str, str]) -> dict[str, object]:
    """What config.json says under `quantization_config` of modules and their algorithms."""
    entries = {
        "NVFP4": {"quant_algo": "NVFP4", "group_size": 16},
        "FP8": {"quant_algo": "FP8"},
    }
    return {
        "ignore": [],
        "quant_algo": "MIXED_PRECISION",
        "quantized_layers": {module: entries[form] for module, form in forms.items()},
        "kv_cache_scheme": {"dynamic": False, "num_bits": 8, "type": "float"},
        "producer": {"name": "modelopt", "version": "0.43.0.dev63"},
        "quant_method": "modelopt",
    }


def super_quantisation() -> Quantisation:
    return parse_quantisation(Fields(quantisation_of(precision()), "config.json"))


def published_tensors() -> Iterator[Published]:
    """Every tensor of the release."""
    forms = precision()
    yield _bf16("backbone.embeddings.weight", 131072, 4096)
    yield _bf16("backbone.norm_f.weight", 4096)
    yield _bf16("lm_head.weight", 131072, 4096)
    for layer, kind in enumerate(PATTERN):
        yield from _layer(f"backbone.layers.{layer}", kind, forms)
        if kind == "*":
            for letter in "kv":
                name = f"backbone.layers.{layer}.mixer.{letter}_proj.{letter}_scale"
                yield Published(name, (), torch.float32)
    yield _bf16("mtp.layers.0.enorm.weight", 4096)
    yield _bf16("mtp.layers.0.hnorm.weight", 4096)
    yield _bf16("mtp.layers.0.eh_proj.weight", 4096, 8192)
    yield from _layer("mtp.layers.0", "*", {})
    yield from _layer("mtp.layers.1", "E", {})
    yield _bf16("mtp.layers.1.final_layernorm.weight", 4096)


def _layer(at: str, kind: str, forms: Mapping[str, str]) -> Iterator[Published]:
    yield _bf16(f"{at}.norm.weight", 4096)
    mixer = f"{at}.mixer"
    if kind == "M":
        for name in ("A_log", "D", "dt_bias"):
            yield _bf16(f"{mixer}.{name}", 128)
        yield _bf16(f"{mixer}.conv1d.weight", 10240, 1, 4)
        yield _bf16(f"{mixer}.conv1d.bias", 10240)
        yield _bf16(f"{mixer}.norm.weight", 8192)
        matrices = {"in_proj": (18560, 4096), "out_proj": (4096, 8192)}
    elif kind == "*":
        matrices = {"q_proj": (4096, 4096), "o_proj": (4096, 4096)}
        matrices |= {"k_proj": (256, 4096), "v_proj": (256, 4096)}
    else:
        yield _bf16(f"{mixer}.gate.weight", 512, 4096)
        yield Published(f"{mixer}.gate.e_score_correction_bias", (512,), torch.float32)
        matrices = {"fc1_latent_proj": (1024, 4096), "fc2_latent_proj": (4096, 1024)}
        matrices |= {"shared_experts.up_proj": (5376, 4096)}
        matrices |= {"shared_experts.down_proj": (4096, 5376)}
        for expert in range(EXPERTS):
            matrices[f"experts.{expert}.up_proj"] = (2688, 1024)
            matrices[f"experts.{expert}.down_proj"] = (1024, 2688)
    for name, (rows, columns) in matrices.items():
        yield from _linear(f"{mixer}.{name}", rows, columns, forms)


def _linear(module: str, rows: int, columns: int, forms: Mapping[str, str]) -> Iterator[Published]:
    weight, scale = f"{module}.weight", f"{module}.weight_scale"
    algorithm = forms.get(module)
    if algorithm is None:
        yield _bf16(weight, rows, columns)
        return
    if algorithm == "NVFP4":
        yield Published(weight, (rows, columns // 2), torch.uint8)
        yield Published(scale, (rows, columns // 16), torch.float8_e4m3fn)
        yield Published(f"{module}.weight_scale_2", (), torch.float32)
    else:
        yield Published(weight, (rows, columns), torch.float8_e4m3fn)
        yield Published(scale, (), torch.float32)
    yield Published(f"{module}.input_scale", (), torch.float32)


def _bf16(name: str, *shape: int) -> Published:
    return Published(name, shape, torch.bfloat16)
