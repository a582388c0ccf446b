"""What the rows of a table are to the performance model: ideal seconds of computing and of memory.

Operations and bytes are counted as `workers.perf.forward` counts them, so that efficiencies fitted
here mean what they mean there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.calibration.tables import Operation, Table
from workers.perf.arrays import Floats
from workers.perf.efficiency import Kind
from workers.perf.hardware import HardwareSpec
from workers.perf.known_models import KNOWN_MODELS, known_model
from workers.perf.precision import BF16, FP8, NVFP4, Format

_FORMATS: dict[str, Format] = {
    "bfloat16": BF16,
    "float16": BF16,
    "half": BF16,
    "fp8": FP8,
    "fp8_block": FP8,
    "int8": FP8,  # of messages, where only bytes count
    "nvfp4": NVFP4,
}
_KINDS: dict[Operation, Kind] = {
    "gemm": "projections",
    "context_attention": "attention",
    "generation_attention": "attention",
    "moe": "experts",
}


@dataclass(frozen=True, slots=True)
class Rows:
    """Measured operations of one table, by row: how long they took, and what peaks allow."""

    kind: Kind
    table: str
    seconds: Floats
    compute_s: Floats
    memory_s: Floats


@dataclass(frozen=True, slots=True)
class Reductions:
    """Measured all-reduces: bytes of the buffer, ranks, seconds."""

    table: str
    size_bytes: Floats
    ranks: Floats
    seconds: Floats


def rows_of(table: Table, hardware: HardwareSpec) -> Rows | None:
    """Those of a table of computing; None of another, or where no row can be used."""
    kind = _KINDS.get(table.operation)
    if kind is None:
        return None
    formats = [_FORMATS.get(name) for name in table.names[_dtype_column(table.operation)]]
    flops, moved_bytes, usable = _work(table, formats)
    rates = np.array(
        [1.0 if one is None else hardware.rate(one.math) for one in formats], np.float64
    )
    seconds = table.numbers["latency"] / 1e3
    usable = usable & (seconds > 0.0) & np.array([one is not None for one in formats])
    if not usable.any():
        return None
    return Rows(
        kind,
        table.operation,
        seconds[usable],
        (flops / rates)[usable],
        (moved_bytes / hardware.memory_bytes_per_s)[usable],
    )


def reductions_of(table: Table) -> Reductions | None:
    """The all-reduces of a table of exchanges; with graphs where there are such, as engines run."""
    if table.operation == "custom_allreduce":
        dtypes, sources = table.names["allreduce_dtype"], table.names["kernel_source"]
        usable = np.array(["eager" not in source for source in sources])
        if not usable.any():
            usable = np.ones(len(sources), np.bool_)
    elif table.operation == "nccl":
        dtypes = table.names["nccl_dtype"]
        usable = np.array([name == "all_reduce" for name in table.names["op_name"]])
    else:
        return None
    formats = [_FORMATS.get(name) for name in dtypes]
    seconds = table.numbers["latency"] / 1e3
    usable = usable & (seconds > 0.0) & np.array([one is not None for one in formats])
    if not usable.any():
        return None
    size = table.numbers["message_size"] * _bytes_of(formats)
    ranks = table.numbers["num_gpus"]
    return Reductions(table.operation, size[usable], ranks[usable], seconds[usable])


def _dtype_column(operation: Operation) -> str:
    return {"gemm": "gemm_dtype", "moe": "moe_dtype"}.get(operation, "attn_dtype")


def _bytes_of(formats: list[Format | None]) -> Floats:
    return np.array([0.0 if one is None else one.bytes for one in formats], np.float64)


def _work(table: Table, formats: list[Format | None]) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """(operations, bytes, whether the model has such a row), by row."""
    of = table.numbers
    every = np.ones(len(formats), np.bool_)
    if table.operation == "gemm":
        weights = of["n"] * of["k"]
        return 2.0 * of["m"] * weights, weights * _bytes_of(formats), every
    if table.operation == "moe":
        return _experts(table, _bytes_of(formats))
    reach = of["step"] + (of["isl"] / 2.0 if table.operation == "context_attention" else of["isl"])
    window = np.where(of["window_size"] > 0.0, of["window_size"], np.inf)
    reach = np.minimum(reach, window)
    cached = _bytes_of([_FORMATS.get(name) for name in table.names["kv_cache_dtype"]])
    pairs = of["batch_size"] * of["isl"] * reach
    held = of["batch_size"] * reach * 2.0 * of["num_key_value_heads"] * of["head_dim"]
    return 4.0 * of["num_heads"] * of["head_dim"] * pairs, held * cached, cached > 0.0


def _experts(table: Table, weight_bytes: Floats) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Rows with all experts on one device, met evenly, of models that the planner knows: how many
    matrices an expert has is in none of the columns."""
    of = table.numbers
    matrices = _matrices()
    shapes = zip(of["hidden_size"], of["inter_size"], of["topk"], of["num_experts"], strict=True)
    count = np.array([matrices.get(tuple(map(int, shape)), 0) for shape in shapes], np.float64)
    each = count * of["hidden_size"] * of["inter_size"] / of["moe_tp_size"]
    met = of["num_experts"] * (1.0 - (1.0 - of["topk"] / of["num_experts"]) ** of["num_tokens"])
    even = np.array([name == "balanced" for name in table.names["distribution"]])
    usable = (count > 0.0) & (of["moe_ep_size"] == 1.0) & even
    flops = 2.0 * of["num_tokens"] * of["topk"] * each
    return flops, met * each * weight_bytes, usable


def _matrices() -> dict[tuple[int, ...], int]:
    """By (hidden, expert's hidden, experts of a token, experts) of the built-in models."""
    return {
        (group.width, group.expert_hidden, group.top_k, group.count): group.matrices
        for name in KNOWN_MODELS
        for group in known_model(name).stack.experts
    }
