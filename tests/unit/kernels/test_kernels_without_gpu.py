"""Kernels are right and can be compiled, as far as that shows without a GPU.

Each check runs in a short-lived process of its own: whether Triton interprets or compiles is fixed
when it is imported, and other tests import it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from workers.kernels import bandwidth, dispatch

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="triton is not installed: kernels were neither interpreted nor compiled",
)


def run_module(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        cwd=Path(__file__).parents[3],
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return done.stdout


@needs_triton
@pytest.mark.parametrize(
    "names",
    [
        "paged_attention combining_ranks",
        "mamba_window windows_of_any_width",
        "latent_experts",
        "whole_model",
    ],
)
def test_interpreted_kernels_give_what_float64_gives(names: str) -> None:
    run_module("tests.unit.kernels.interpret", *names.split(), TRITON_INTERPRET="1")


@needs_triton
def test_every_kernel_compiles_for_hopper_without_spilling(tmp_path: Path) -> None:
    printed = run_module(
        "tests.unit.kernels.compile_kernels",
        "90",
        TRITON_INTERPRET="0",
        TRITON_CACHE_DIR=str(tmp_path),
    )
    rows = [json.loads(line) for line in printed.splitlines()]
    compiled = {row["kernel"] for row in rows}
    assert compiled == {"_attend", "_combine", "_convolve", "_scan", "_up", "_down", "_add"}
    for row in rows:
        assert row["shared_bytes"] <= 227 * 1024
        # Registers that spill land in the stack; float32, which only tests use, may spill a few.
        most = 16 if row["types"] == ["torch.float32", "torch.int64"] else 0
        assert row["stack"] <= most, row
        assert row["local"] == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: bandwidth is measured")
def test_bandwidth_says_that_it_needs_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert bandwidth.main() == 2
    assert "no GPU is available" in capsys.readouterr().err


def test_a_tensor_on_a_cpu_is_left_to_the_model() -> None:
    assert not dispatch.suits(torch.zeros(1))
