"""Which modules of a checkpoint are quantised, and how.

Exists because a release mixes forms layer by layer and says so in JSON, in the several shapes that
NVIDIA ModelOpt's export has had: `quantization_config` in config.json, or `hf_quant_config.json`
beside it; one algorithm with a list of exceptions, or MIXED_PRECISION with `quantized_layers`
(module -> algorithm), which older exports give as `config_groups` with module names as targets.
What is unknown is refused by name: packed bytes read in the wrong form are fluent nonsense.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from fnmatch import fnmatchcase
from pathlib import Path

from workers.checkpoint.nvfp4 import BLOCK_COLUMNS
from workers.checkpoint.schema import canonical_name
from workers.model.config_fields import Fields
from workers.model.errors import CheckpointError


class Form(Enum):
    """How a matrix is stored."""

    PLAIN = "plain"
    FP8 = "FP8"
    NVFP4 = "NVFP4"


# W4A16_NVFP4 differs from NVFP4 only in how activations are treated, not in what is stored.
_ALGORITHMS = {"FP8": Form.FP8, "NVFP4": Form.NVFP4, "W4A16_NVFP4": Form.NVFP4}
_MIXED = "MIXED_PRECISION"
_ADVICE = "Supported: FP8 (per tensor), NVFP4 (blocks of 16), or the bfloat16 release."


@dataclass(frozen=True, slots=True)
class Quantisation:
    """The form of every linear layer.

    `listed` holds canonical names of modules, `ignored` patterns of such names; both also speak
    for everything below the module. `default` is the form of what is in neither. `kv_scales`: the
    release carries scales for a quantised KV cache.
    """

    default: Form = Form.PLAIN
    listed: Mapping[str, Form] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    kv_scales: bool = False

    def form(self, module: str) -> Form:
        """The form of a linear layer, by canonical module name (`layers.3.mixer.o_proj`)."""
        name = module
        while name:
            if name in self.listed:
                return self.listed[name]
            if any(fnmatchcase(name, pattern) for pattern in self.ignored):
                return Form.PLAIN
            name = name.rpartition(".")[0]
        return self.default

    @classmethod
    def of_folder(cls, folder: Path) -> Quantisation:
        """Read config.json, or hf_quant_config.json where config.json says nothing.

        Raises:
            CheckpointError: a file is unreadable, or describes a form that is not supported.
        """
        for name, key in (
            ("config.json", "quantization_config"),
            ("hf_quant_config.json", "quantization"),
        ):
            file = folder / name
            if not file.exists():
                continue
            try:
                values = json.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise CheckpointError(f"{file}: cannot be read as JSON: {error}") from error
            if isinstance(values, dict) and values.get(key) is not None:
                return parse_quantisation(_object(values, key, str(file)))
        return cls()


def parse_quantisation(fields: Fields) -> Quantisation:
    """Build the map from `quantization_config` or from hf_quant_config.json's `quantization`."""
    fields.choice("quant_method", "modelopt", ("modelopt",))
    kv_scales = fields.has("kv_cache_scheme") or fields.has("kv_cache_quant_algo")
    algorithm = fields.values.get("quant_algo")
    if algorithm == _MIXED:
        listed = _listed(fields) if fields.has("quantized_layers") else _grouped(fields)
        return Quantisation(listed=listed, kv_scales=kv_scales)
    if algorithm is None:
        if fields.has("config_groups") or fields.has("quantized_layers"):
            raise fields.refuse("quant_algo", "the algorithm is not named", _ADVICE)
        return Quantisation(kv_scales=kv_scales)
    form = _form(fields, "quant_algo", algorithm)
    _check_group_size(fields)
    exceptions = "ignore" if fields.has("ignore") else "exclude_modules"
    patterns = fields.words(exceptions) if fields.has(exceptions) else ()
    return Quantisation(
        default=form,
        ignored=tuple(canonical_name(pattern) for pattern in patterns),
        kv_scales=kv_scales,
    )


def _object(values: Mapping[str, object], key: str, origin: str) -> Fields:
    value = values[key]
    if not isinstance(value, dict):
        raise Fields(values, origin).refuse(key, "expected an object", f"Correct '{key}'.")
    return Fields(value, f"{origin}: {key}")


def _form(fields: Fields, name: str, algorithm: object) -> Form:
    form = _ALGORITHMS.get(algorithm) if isinstance(algorithm, str) else None
    if form is None:
        raise fields.refuse(name, "this quantisation cannot be read", _ADVICE)
    return form


def _check_group_size(fields: Fields) -> None:
    """NVFP4 has blocks of 16; another size would be another format."""
    if fields.integer("group_size", BLOCK_COLUMNS) != BLOCK_COLUMNS:
        raise fields.refuse("group_size", f"only blocks of {BLOCK_COLUMNS} can be read", _ADVICE)


def _listed(fields: Fields) -> dict[str, Form]:
    """`quantized_layers`: module name -> {quant_algo, group_size}."""
    modules = _object(fields.values, "quantized_layers", fields.origin)
    forms = {}
    for name in modules.values:
        module = _object(modules.values, name, modules.origin)
        forms[canonical_name(name)] = _form(module, "quant_algo", module.values.get("quant_algo"))
        _check_group_size(module)
    return forms


def _grouped(fields: Fields) -> dict[str, Form]:
    """`config_groups`: name -> {weights: {num_bits, type, group_size}, targets: [module, ...]}."""
    if not fields.has("config_groups"):
        raise fields.refuse(
            "quantized_layers",
            f"{_MIXED} needs 'quantized_layers' or 'config_groups'",
            "Copy config.json and hf_quant_config.json of the release again.",
        )
    groups = _object(fields.values, "config_groups", fields.origin)
    forms = {}
    for name in groups.values:
        group = _object(groups.values, name, groups.origin)
        if not group.has("weights"):
            raise group.refuse("weights", "the group does not say how weights are stored", _ADVICE)
        weights = _object(group.values, "weights", group.origin)
        for target in group.words("targets"):
            forms[canonical_name(target)] = _group_form(weights)
    return forms


def _group_form(weights: Fields) -> Form:
    bits = weights.integer("num_bits")
    weights.choice("type", "float", ("float",))
    if bits == 4:
        _check_group_size(weights)
        return Form.NVFP4
    if bits != 8 or weights.has("group_size") or weights.has("strategy"):
        raise weights.refuse("num_bits", "this quantisation cannot be read", _ADVICE)
    return Form.FP8
