"""The peaks of this machine's processor, as torch reaches them on the engine's threads."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch

from workers.perf.hardware import HardwareSpec
from workers.perf.precision import Math

_SIDE = 1024
_READ_BYTES = 256 * 2**20
_REPEATS = 5
# NIXL writes of 64 MB between two processes over shared memory, on two cores.
_HANDOFF_BYTES_PER_S = 2.3e9
_HANDOFF_LATENCY_S = 5e-4


def measure_cpu(threads: int, dtype: torch.dtype) -> HardwareSpec:
    """Peak products and reads; takes about a second."""
    torch.set_num_threads(threads)
    with torch.inference_mode():
        rates: dict[Math, float] = {"fp32": _products(torch.float32)}
        if dtype == torch.bfloat16:
            rates["bf16"] = _products(torch.bfloat16)
        read = _read_bytes_per_s()
    return HardwareSpec(
        name="cpu",
        flops_per_s=rates,
        memory_bytes_per_s=read,
        memory_bytes=float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        domain=1,
        scale_up_bytes_per_s=_HANDOFF_BYTES_PER_S,
        scale_up_latency_s=_HANDOFF_LATENCY_S,
        scale_out_bytes_per_s=_HANDOFF_BYTES_PER_S,
        scale_out_latency_s=_HANDOFF_LATENCY_S,
        sources={
            "flops_per_s": f"measured: products of {_SIDE} x {_SIDE}, {threads} threads",
            "memory": f"measured: sum of {_READ_BYTES >> 20} MiB; all memory of the machine",
            "scale_up": "NIXL over shared memory, 64 MB writes",
            "scale_out": "NIXL over shared memory, 64 MB writes",
        },
    )


def _products(dtype: torch.dtype) -> float:
    left, right = torch.ones(_SIDE, _SIDE, dtype=dtype), torch.ones(_SIDE, _SIDE, dtype=dtype)
    return 2.0 * _SIDE**3 / _shortest_s(lambda: torch.mm(left, right))


def _read_bytes_per_s() -> float:
    large = torch.ones(_READ_BYTES // 4)
    return _READ_BYTES / _shortest_s(large.sum)


def _shortest_s(work: Callable[[], object]) -> float:
    work()
    times = []
    for _ in range(_REPEATS):
        began_s = time.perf_counter()
        work()
        times.append(time.perf_counter() - began_s)
    return min(times)
