"""Every tensor that a release of a model stores: name, shape, data type, and what it is for.

Exists so that what a checkpoint must hold is computed from the model's shape and its quantisation
alone, before a file is opened: the loader claims a checkpoint's tensors against this list, and the
list of a published release can be checked on the meta device. Shapes of scales follow NVIDIA
ModelOpt's unified export: FP8 has one float32 scale, NVFP4 one E4M3 scale for 16 columns and a
float32 one for the matrix.

Some scales are understood, checked and then left unread. `input_scale` is for matrix products of
quantised activations, `k_scale` and `v_scale` are for a quantised KV cache; this engine computes
with dequantised weights and keeps activations and KV in the model's data type.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

import torch

from workers.checkpoint.nvfp4 import BLOCK_COLUMNS, COLUMNS_PER_BYTE
from workers.checkpoint.quantisation import Form, Quantisation
from workers.checkpoint.schema import (
    EXPERTS_DOWN,
    EXPERTS_UP,
    Expected,
    model_schema,
    mtp_schema,
    published_name,
)
from workers.model.config import ModelConfig
from workers.model.errors import CheckpointError

ROUTER_BIAS = "e_score_correction_bias"  # float32 in every release, whatever the model's data type


class Role(Enum):
    """What a stored tensor is to its weight."""

    VALUES = "values"
    SCALE = "weight_scale"
    GLOBAL_SCALE = "weight_scale_2"
    INPUT_SCALE = "input_scale"
    KV_SCALE = "kv_scale"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a release; `name` is the canonical one (see `schema`)."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    role: Role
    optional: bool = False

    @property
    def published(self) -> str:
        """The name in a published release."""
        return published_name(self.name)


@dataclass(frozen=True, slots=True)
class Piece:
    """What is stored for one weight, or for one expert of a stacked weight.

    `weight` is the canonical weight; `expert` its index there, None where the whole weight is one
    piece. The first of `tensors` holds the values.
    """

    weight: str
    expert: int | None
    form: Form
    tensors: tuple[StoredTensor, ...]


def is_stack(name: str) -> bool:
    """True for a canonical weight that releases store as one matrix per expert."""
    return name.endswith((EXPERTS_UP, EXPERTS_DOWN))


def pieces(
    name: str, expected: Expected, config: ModelConfig, quantisation: Quantisation
) -> Iterator[Piece]:
    """What a published release stores for one canonical weight.

    Raises:
        CheckpointError: a matrix is said to be NVFP4 and its rows are no whole number of blocks.
    """
    if not is_stack(name):
        yield _piece(name, None, name, expected, config, quantisation)
        return
    stem, matrix = name.rsplit(".", 1)
    each = Expected(expected.shape[1:], expected.optional, expected.linear)
    for expert in range(expected.shape[0]):
        stored = f"{stem}.{expert}.{matrix}.weight"
        yield _piece(name, expert, stored, each, config, quantisation)


def inventory(config: ModelConfig, quantisation: Quantisation) -> Iterator[StoredTensor]:
    """All tensors of a published release of a model, its MTP block and scales included."""
    for name, expected in (model_schema(config) | mtp_schema(config)).items():
        for piece in pieces(name, expected, config, quantisation):
            yield from piece.tensors


def _piece(
    weight: str,
    expert: int | None,
    stored: str,
    expected: Expected,
    config: ModelConfig,
    quantisation: Quantisation,
) -> Piece:
    module = stored.removesuffix(".weight")
    form = quantisation.form(module) if expected.linear else Form.PLAIN
    tensors = _stored(stored, module, expected, form, config)
    if quantisation.kv_scales and stored.startswith("layers."):
        tensors += _kv_scales(module)
    return Piece(weight, expert, form, tensors)


def _stored(
    name: str, module: str, expected: Expected, form: Form, config: ModelConfig
) -> tuple[StoredTensor, ...]:
    scalar = StoredTensor(f"{module}.weight_scale", (), torch.float32, Role.SCALE)
    # Exports for products with unquantised activations leave it out.
    inputs = StoredTensor(f"{module}.input_scale", (), torch.float32, Role.INPUT_SCALE, True)
    match form:
        case Form.PLAIN:
            dtype = torch.float32 if name.endswith(ROUTER_BIAS) else config.dtype
            return (StoredTensor(name, expected.shape, dtype, Role.VALUES, expected.optional),)
        case Form.FP8:
            values = StoredTensor(name, expected.shape, torch.float8_e4m3fn, Role.VALUES)
            return (values, scalar, inputs)
        case Form.NVFP4:
            rows, columns = expected.shape
            if columns % BLOCK_COLUMNS:
                raise CheckpointError(
                    f"'{module}' cannot be NVFP4: {columns} columns are no whole number of "
                    f"blocks of {BLOCK_COLUMNS}. Use the config.json of these weights."
                )
            packed = (rows, columns // COLUMNS_PER_BYTE)
            blocks = (rows, columns // BLOCK_COLUMNS)
            return (
                StoredTensor(name, packed, torch.uint8, Role.VALUES),
                StoredTensor(scalar.name, blocks, torch.float8_e4m3fn, Role.SCALE),
                StoredTensor(f"{module}.weight_scale_2", (), torch.float32, Role.GLOBAL_SCALE),
                inputs,
            )


def _kv_scales(module: str) -> tuple[StoredTensor, ...]:
    """The scale of what a KV projection writes into a quantised cache."""
    for letter in "kv":
        if module.endswith(f".{letter}_proj"):
            name = f"{module}.{letter}_scale"
            return (StoredTensor(name, (), torch.float32, Role.KV_SCALE, True),)
    return ()
