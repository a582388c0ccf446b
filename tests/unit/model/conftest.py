"""Checkpoints that several tests of the model share; written once per run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import NemotronHForCausalLM

from tests.reference_models import SHAPES, write_published, write_reference
from workers.checkpoint import load_model
from workers.kernels.cpu import calls
from workers.model import HybridModel


@dataclass(frozen=True, slots=True)
class Pair:
    """One random model: its folder in both schemes, transformers' model and ours."""

    stacked: Path
    published: Path
    reference: NemotronHForCausalLM
    model: HybridModel


MakePair = Callable[[str], Pair]


@pytest.fixture(scope="session", params=["torch", "compiled"])
def operations(request: pytest.FixtureRequest) -> Iterator[str]:
    """What models compute with: PyTorch's operations, then our compiled kernels."""
    calls.disable()
    if request.param == "compiled" and not calls.enable():
        pytest.skip("no C++ compiler: kernels were not compiled")
    yield request.param
    calls.disable()


@pytest.fixture(scope="session")
def make_pair(tmp_path_factory: pytest.TempPathFactory, operations: str) -> MakePair:
    made: dict[str, Pair] = {}

    def make(name: str) -> Pair:
        if name not in made:
            folder = tmp_path_factory.mktemp(f"{name}-{operations}")
            stacked, published = folder / "stacked", folder / "published"
            reference = write_reference(stacked, SHAPES[name], seed=len(name))
            write_published(stacked, published, shards=2)
            model = load_model(stacked, torch.float32)
            made[name] = Pair(stacked, published, reference, model)
        return made[name]

    return make
