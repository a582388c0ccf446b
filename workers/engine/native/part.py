"""One rank's part of a worker: weights, memory, and what it runs.

Exists so that rank 0 and the ranks that follow it are built by the same lines from the same config,
and agree on every number of a block or slot.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from workers.checkpoint import Progress, load_model, load_rank
from workers.config import WorkerConfig
from workers.engine.native.calls import Call
from workers.engine.native.draft_length import MOST_DRAFT_TOKENS
from workers.engine.native.passes import ModelPasses
from workers.handoff.agent import NixlAgent
from workers.handoff.manifest import ModelVersion
from workers.handoff.rank_end import RankEnd
from workers.kernels.cpu import calls
from workers.model.allocator import keep_freed_memory
from workers.model.config import ModelConfig
from workers.model.ranks import Ranks
from workers.state.fingerprint import model_fingerprint
from workers.state.geometry import StateGeometry
from workers.state.layout import StateLayout
from workers.state.store import StateStore

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
EPOCH = 0


class UnbuiltLayout(ValueError):
    """A layout or feature that this engine does not have."""


def most_draft_tokens(config: WorkerConfig, can_draft: bool) -> int:
    """The longest draft of any step.

    Raises:
        UnbuiltLayout: drafts are asked for and there is no MTP block to make them.
    """
    if config.draft_tokens == "auto":
        return MOST_DRAFT_TOKENS if can_draft else 0
    if config.draft_tokens and not can_draft:
        raise UnbuiltLayout(
            f"draft_tokens={config.draft_tokens}: {config.model_path} has no MTP block; "
            "set draft_tokens to 0 or auto"
        )
    return config.draft_tokens


def block_tokens_of_group(config: WorkerConfig) -> int:
    """Tokens of one block over all ranks: each KVP rank keeps `block_tokens` of them."""
    return config.block_tokens * config.parallel.kvp


def blocks(config: WorkerConfig) -> int:
    """KV blocks, the same number on every rank."""
    return -(-config.kv_tokens // block_tokens_of_group(config))


def device_of_rank(config: WorkerConfig, rank: int) -> torch.device:
    """Where a rank computes: on CUDA each on a GPU of its own."""
    if config.device == "cuda" and config.parallel.size > 1:
        return torch.device("cuda", rank)
    return torch.device(config.device)


def load_part(
    config: WorkerConfig,
    ranks: Ranks | None,
    tell: Callable[[Call], object] | None = None,
    progress: Progress | None = None,
) -> ModelPasses:
    """Read the weights of a rank and set its memory aside.

    Args:
        config: of the worker.
        ranks: this rank among the others; None for the only one.
        tell: how followers learn of calls, on rank 0.
        progress: of reading weights.

    Raises:
        CheckpointError: the checkpoint is incomplete, misshapen or of an unknown kind.
        UnbuiltLayout: see `most_draft_tokens`.
    """
    torch.set_num_threads(config.threads)
    keep_freed_memory()
    device = device_of_rank(config, ranks.rank if ranks is not None else 0)
    if config.cpu_kernels and device.type == "cpu":
        calls.enable()  # before weights are laid out for them
    else:
        calls.disable()
    path, dtype = Path(config.model_path), DTYPES[config.dtype]
    if ranks is None:
        model = load_model(path, dtype, device, progress=progress)
    else:
        model = load_rank(path, ranks, dtype, device, progress=progress)
    geometry = StateGeometry.from_config(
        model.config,
        block_tokens=config.block_tokens,
        dtype=dtype,
        max_draft_tokens=most_draft_tokens(config, model.weights.mtp is not None),
    )
    slots = config.max_requests + config.max_checkpoints
    store = StateStore(geometry, blocks=blocks(config), slots=slots, device=device)
    return ModelPasses(model, store) if tell is None else ModelPasses(model, store, tell)


def state_layout(config: WorkerConfig, model: ModelConfig, passes: ModelPasses) -> StateLayout:
    """Where the state of requests lives on all ranks of the worker."""
    whole = StateGeometry.from_config(
        model,
        block_tokens=config.block_tokens,
        dtype=DTYPES[config.dtype],
        max_draft_tokens=passes.most_draft_tokens,
    )
    return StateLayout(whole, config.parallel)


def open_end(config: WorkerConfig, passes: ModelPasses, rank: int) -> RankEnd:
    """This rank's end of hand-offs: an agent of its own, with this rank's memory registered."""
    path = Path(config.model_path)
    model = ModelConfig.from_file(path)
    layout = state_layout(config, model, passes)
    if layout.rank_geometry != passes.store.geometry:
        raise ValueError(f"state is cut as {layout.rank_geometry}, not {passes.store.geometry}")
    version = ModelVersion(model_fingerprint(model, path), EPOCH)
    agent = NixlAgent(config.worker_id if rank == 0 else f"{config.worker_id}.{rank}")
    return RankEnd(agent, passes.store, layout, rank, version, time.monotonic)
