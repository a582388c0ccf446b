"""Tests here run on a GPU or not at all."""

from __future__ import annotations

import importlib.util

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def gpu() -> None:
    """Skip where there is no GPU, or nothing to compile kernels with."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU is available: kernels were not run on one")
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed: kernels cannot be compiled")
