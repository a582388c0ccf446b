"""What this machine can read and multiply, measured in the process whose steps are judged by it.

A decode step reads every weight once and multiplies every matrix with one row for each request. So
it takes at least

    max(weight_bytes / read_bytes_per_s, batch * token_flops / matmul_flops_per_s)

and the share of the roofline is that over the step's measured time. Both rates are torch's own, on
as many threads as the engine has: the read is the faster of a sum and a matrix-vector product over
a tensor far larger than the caches; the products are of the model's own matrix shapes, each from
cache, with as many rows as the batch (few rows run at a lower rate than many; the rate with many
rows is reported as well). State, activations and norms are left out: they only raise the floor.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from functools import partial

import torch
from torch.nn import functional

from orchestrator.bench.messages import Roofline
from workers.checkpoint.schema import model_schema
from workers.config import Dtype
from workers.model.config import ModelConfig

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_READ_BYTES = 512 * 2**20
_WIDE_ROWS = 512
_REPEATS = 5
_SHORTEST_S = 0.02
_MATRIX_VECTOR_COLUMNS = 4096


def measure_roofline(config: ModelConfig, dtype: Dtype, batch: int) -> Roofline:
    """Measure both rates for a model without experts.

    Raises:
        ValueError: the model has experts, of which a step reads a part that depends on the tokens.
    """
    if config.n_routed_experts:
        raise ValueError("the roofline is defined for models without experts")
    kept = _DTYPES[dtype]
    schema = model_schema(config)
    read = [expected.shape for name, expected in schema.items() if name != "embeddings.weight"]
    shapes = Counter(expected.shape for expected in schema.values() if expected.linear)
    with torch.inference_mode():
        return Roofline(
            weight_bytes=sum(map(math.prod, read)) * kept.itemsize,
            token_flops=2 * sum(math.prod(shape) * count for shape, count in shapes.items()),
            read_bytes_per_s=_read_rate(kept),
            matmul_flops_per_s=_matmul_rate(shapes, batch, kept),
            wide_matmul_flops_per_s=_matmul_rate(shapes, _WIDE_ROWS, kept),
        )


def _read_rate(dtype: torch.dtype) -> float:
    rows = _READ_BYTES // (_MATRIX_VECTOR_COLUMNS * dtype.itemsize)
    large = torch.ones(rows, _MATRIX_VECTOR_COLUMNS, dtype=dtype)
    vector = torch.ones(_MATRIX_VECTOR_COLUMNS, dtype=dtype)
    words = large.view(torch.float32)
    seconds = min(_best_s(words.sum), _best_s(lambda: torch.mv(large, vector)))
    return large.nbytes / seconds


def _matmul_rate(shapes: Counter[tuple[int, ...]], rows: int, dtype: torch.dtype) -> float:
    flops = seconds = 0.0
    for (outputs, inputs), count in shapes.items():
        matrix = torch.full((outputs, inputs), 0.01, dtype=dtype)
        given = torch.ones(rows, inputs, dtype=dtype)
        once_s = _best_s(partial(functional.linear, given, matrix))
        flops += 2.0 * rows * outputs * inputs * count
        seconds += once_s * count
    return flops / seconds


def _best_s(work: Callable[[], object]) -> float:
    """The shortest time of doing something once, from several repeats of a while of it."""
    work()
    times, best = 1, math.inf
    for _ in range(_REPEATS):
        while True:
            began_s = time.perf_counter()
            for _ in range(times):
                work()
            took_s = time.perf_counter() - began_s
            if took_s >= _SHORTEST_S:
                break
            times *= 2
        best = min(best, took_s / times)
    return best
