"""A model of a checkpoint folder, whole or one rank's part of it.

Exists apart from `workers.model` so that the maths knows nothing of files.
"""

from __future__ import annotations

from pathlib import Path

import torch

from workers.checkpoint.loading import Checkpoint, Progress
from workers.checkpoint.shard import RankShard
from workers.model.assembly import assemble
from workers.model.config import ModelConfig
from workers.model.hybrid import HybridModel
from workers.model.rank_config import rank_config
from workers.model.ranks import Ranks


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


def load_rank(
    path: str | Path,
    ranks: Ranks,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    *,
    progress: Progress | None = None,
) -> HybridModel:
    """Load one rank's part of a checkpoint folder; see `load_model`.

    Raises:
        CheckpointError: as `load_model`.
        ValueError: the layout does not divide the model.
    """
    folder = Path(path)
    config = ModelConfig.from_file(folder)
    shard = RankShard(ranks.rank, ranks.layout)
    tensors = Checkpoint(folder, config).load(
        dtype or config.dtype, device, shard=shard, progress=progress
    )
    if "lm_head.weight" not in tensors:  # tied to the embeddings, which are whole on every rank
        embeddings = tensors["embeddings.weight"]
        region = shard.region("lm_head.weight", tuple(embeddings.shape), config)
        ((begin, end),) = region.dimensions[0]
        tensors["lm_head.weight"] = embeddings[begin:end]
    own = rank_config(config, ranks.layout)
    return HybridModel(own, assemble(own, tensors, ranks), ranks)
