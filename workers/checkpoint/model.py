"""A whole model of a checkpoint folder.

Exists apart from `workers.model` so that the maths knows nothing of files.
"""

from __future__ import annotations

from pathlib import Path

import torch

from workers.checkpoint.loading import Checkpoint, Progress
from workers.model.assembly import assemble
from workers.model.config import ModelConfig
from workers.model.hybrid import HybridModel


def load_model(
    path: str | Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    *,
    progress: Progress | None = None,
) -> HybridModel:
    """Load a checkpoint folder.

    Args:
        path: folder with config.json and safetensors, in either naming scheme, quantised or not.
        dtype: torch.float32 or torch.bfloat16; None takes the one config.json names.
        device: where the weights go.
        progress: called with (bytes read, bytes to read) while weights are read.

    Raises:
        CheckpointError: the folder, its config.json or one of its tensors cannot be used.
    """
    folder = Path(path)
    config = ModelConfig.from_file(folder)
    tensors = Checkpoint(folder, config).load(dtype or config.dtype, device, progress=progress)
    return HybridModel(config, assemble(config, tensors))
