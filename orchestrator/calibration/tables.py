"""The Parquet tables that AIConfigurator publishes: which there are, and their columns.

A table is of one kind of operation, measured on one device with one framework: files named
`gemm_perf.parquet`, `context_attention_perf.parquet` and so on, in the folder `systems/data` of
github.com/ai-dynamo/aiconfigurator. Latencies are in ms; `step` is what was cached before; message
sizes count elements. Columns were checked on tables of H200 collected with vLLM 0.22 and 0.24,
TensorRT-LLM 1.3.0rc20 and NCCL 2.29. Needs pyarrow and nothing of AIConfigurator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from workers.perf.arrays import Floats
from workers.perf.errors import PerfError

Operation = Literal[
    "gemm", "context_attention", "generation_attention", "moe", "custom_allreduce", "nccl"
]
_SUFFIX = "_perf.parquet"
_ATTENTION = (
    ("batch_size", "isl", "num_heads", "num_key_value_heads", "head_dim", "step", "window_size"),
    ("attn_dtype", "kv_cache_dtype"),
)
# Of each operation: columns of numbers and of names, those of every table left out.
_COLUMNS: dict[Operation, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "gemm": (("m", "n", "k"), ("gemm_dtype",)),
    "context_attention": _ATTENTION,
    "generation_attention": _ATTENTION,
    "moe": (
        (
            "num_tokens",
            "hidden_size",
            "inter_size",
            "topk",
            "num_experts",
            "moe_tp_size",
            "moe_ep_size",
        ),
        ("moe_dtype", "distribution"),
    ),
    "custom_allreduce": (("num_gpus", "message_size"), ("allreduce_dtype", "kernel_source")),
    "nccl": (("num_gpus", "message_size"), ("nccl_dtype", "op_name")),
}
# Tables of before sliding windows have none.
_DEFAULTS = {"window_size": 0.0}


@dataclass(frozen=True, slots=True)
class Table:
    """One table: `numbers` and `names` by column, `latency` in ms among the numbers."""

    operation: Operation
    path: Path
    device: str
    framework: str
    numbers: dict[str, Floats]
    names: dict[str, list[str]]


def read_tables(paths: Sequence[Path]) -> list[Table]:
    """Files, or all known tables directly in folders.

    Raises:
        PerfError: nothing that is known is there, one cannot be read, or it has other columns.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += sorted(one for one in path.glob("*" + _SUFFIX) if _operation(one) is not None)
        else:
            files.append(path)
    if not files:
        raise PerfError(
            f"{', '.join(map(str, paths))}: no table that is known is in there; give folders or "
            f"files named {', '.join(name + _SUFFIX for name in get_args(Operation))}"
        )
    tables = [_read(path) for path in files]
    seen: dict[Operation, Path] = {}
    for table in tables:
        if table.operation in seen:
            raise PerfError(
                f"{table.path}: {seen[table.operation]} is a {table.operation} table already; "
                "give one of each, of one framework and version"
            )
        seen[table.operation] = table.path
    return tables


def _operation(path: Path) -> Operation | None:
    name = path.name.removesuffix(_SUFFIX)
    return next((one for one in _COLUMNS if one == name), None)


def _read(path: Path) -> Table:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import read_table
    except ImportError as error:
        raise PerfError(
            f"{path}: reading Parquet needs pyarrow; pip install 'tandem-serve[aiconfigurator]'"
        ) from error
    operation = _operation(path)
    if operation is None:
        known = ", ".join(name + _SUFFIX for name in _COLUMNS)
        raise PerfError(f"{path}: not one of the tables that can be used: {known}")
    try:
        found = read_table(path)
    except (OSError, ArrowException) as error:
        raise PerfError(
            f"{path}: cannot be read as Parquet: {error} (a Git LFS pointer must be fetched first)"
        ) from error
    numbers, names = _COLUMNS[operation]
    numbers, names = (*numbers, "latency"), (*names, "device", "framework")
    there = found.column_names
    missing = [one for one in (*numbers, *names) if one not in there and one not in _DEFAULTS]
    if missing:
        raise PerfError(
            f"{path}: columns {', '.join(missing)} of a {operation} table are missing; it has "
            f"{', '.join(there)}"
        )
    rows = found.num_rows
    values: dict[str, Floats] = {}
    for name in numbers:
        if name not in there:
            values[name] = np.full(rows, _DEFAULTS[name])
            continue
        try:
            values[name] = np.array(found.column(name).to_pylist(), dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise PerfError(f"{path}: column {name} is not of numbers: {error}") from error
    texts = {name: [str(one) for one in found.column(name).to_pylist()] for name in names}
    if not rows:
        raise PerfError(f"{path}: it has no rows")
    return Table(operation, path, texts["device"][0], texts["framework"][0], values, texts)
