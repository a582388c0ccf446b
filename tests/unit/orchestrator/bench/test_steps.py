"""The floor of a decode step: weights read, or matrices multiplied, whichever is slower."""

from __future__ import annotations

from orchestrator.bench.engine.steps import bound_by, floor_s
from orchestrator.bench.messages import Roofline

_MACHINE = Roofline(
    weight_bytes=400,
    token_flops=200,
    read_bytes_per_s=100.0,
    matmul_flops_per_s=1000.0,
    wide_matmul_flops_per_s=2000.0,
)


def test_one_row_is_bound_by_reading_the_weights() -> None:
    assert floor_s(_MACHINE, 1, _MACHINE.matmul_flops_per_s) == 4.0
    assert bound_by(_MACHINE, 1) == "memory"


def test_many_rows_are_bound_by_multiplying() -> None:
    assert floor_s(_MACHINE, 32, _MACHINE.matmul_flops_per_s) == 6.4
    assert floor_s(_MACHINE, 32, _MACHINE.wide_matmul_flops_per_s) == 4.0
    assert bound_by(_MACHINE, 32) == "matmul"
