"""The native model: a Nemotron-H hybrid on plain PyTorch.

Exists so that the engine, training and tests run the same maths; it holds no requests, no
memory and no processes. `workers.checkpoint.load_model` makes a `HybridModel` of a folder.
"""

from __future__ import annotations

from workers.model.config import ModelConfig
from workers.model.errors import CheckpointError
from workers.model.hybrid import HybridModel
from workers.model.state_tensors import StateTensors

__all__ = ["CheckpointError", "HybridModel", "ModelConfig", "StateTensors"]
