"""Which layouts let a worker change its role without loading weights anew."""

from __future__ import annotations

from dataclasses import replace

import pytest

from workers.config import WorkerConfig
from workers.roles import flip_problem, flipped_config

_DECODE = WorkerConfig(worker_id="w", role="decode", model_path="m", model_name="m")


@pytest.mark.parametrize(
    ("own", "role", "layout", "problem"),
    [
        ({}, "prefill", "tp=1", None),
        ({}, "prefill", "", None),
        ({"role": "prefill", "tp": 2}, "decode", "kvp=1 tpa=2 ep=1 tpf=2", None),
        ({"tpa": 2, "tpf": 2}, "prefill", "tp=2", None),
        ({"tpa": 2, "tpf": 2}, "prefill", "tp=4", "that of the prefill pool is tp=4"),
        ({"kvp": 2, "ep": 2}, "prefill", "", "splits the tokens"),
        ({"tpa": 2, "ep": 2}, "prefill", "", "splits the tokens"),
        ({}, "router", "", "must be prefill or decode"),
        ({}, "prefill", "nonsense", "that of the prefill pool is nonsense"),
    ],
)
def test_only_plain_tensor_parallelism_of_equal_size_serves_both_roles(
    own: dict[str, object], role: str, layout: str, problem: str | None
) -> None:
    found = flip_problem(replace(_DECODE, **own), role, layout)  # type: ignore[arg-type]
    assert (found is None) if problem is None else (found is not None and problem in found)


def test_a_flip_renames_the_ranks_and_flipping_back_restores_the_config() -> None:
    decode = replace(_DECODE, tpa=2, tpf=2)
    prefill = flipped_config(decode, "prefill")
    assert (prefill.role, prefill.layout) == ("prefill", "tp=2")
    assert flipped_config(prefill, "decode") == decode
