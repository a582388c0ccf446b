"""From a worker's config to a native engine that is ready for its first step."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from workers.config import WorkerConfig
from workers.engine.native.engine import NativeEngine
from workers.engine.native.runner import ModelRunner
from workers.handoff.agent import NixlAgent
from workers.handoff.manifest import ModelVersion
from workers.handoff.receiver import HandoffReceiver
from workers.handoff.sender import HandoffSender
from workers.model.hybrid import load_model
from workers.state.fingerprint import model_fingerprint
from workers.state.geometry import StateGeometry
from workers.state.memory import StateMemory
from workers.state.store import StateStore
from workers.telemetry import Tracing

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_EPOCH = 0


class UnbuiltLayout(ValueError):
    """A layout or feature that this engine does not have."""


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    """An engine and what the directory says of it."""

    engine: NativeEngine
    model_fingerprint: str
    max_model_tokens: int
    vocab_size: int
    epoch: int = _EPOCH


def load_native_engine(config: WorkerConfig, tracing: Tracing) -> LoadedEngine:
    """Load weights, set memory aside, and register it with NIXL.

    Raises:
        CheckpointError: the checkpoint is incomplete, misshapen or of an unknown kind.
        UnbuiltLayout: the layout needs more than one rank, or draft tokens are asked for.
    """
    refuse_unbuilt_layout(config)
    torch.set_num_threads(config.threads)
    device = torch.device(config.device)
    dtype = _DTYPES[config.dtype]
    path = Path(config.model_path)
    model = load_model(path, dtype, device)
    version = ModelVersion(model_fingerprint(model.config, path), _EPOCH)
    geometry = StateGeometry.from_config(
        model.config, block_tokens=config.block_tokens, dtype=dtype
    )
    num_blocks = -(-config.kv_tokens // config.block_tokens)
    store = StateStore(geometry, blocks=num_blocks, slots=config.max_requests, device=device)
    agent = NixlAgent(config.worker_id)
    agent.register(store.memory())
    engine = NativeEngine(
        runner=ModelRunner(model, store, device),
        memory=StateMemory(
            blocks=num_blocks, slots=config.max_requests, block_tokens=config.block_tokens
        ),
        agent=agent,
        sender=HandoffSender(agent, store, version, timeout_s=config.handoff_timeout_s),
        receiver=HandoffReceiver(
            agent,
            store,
            version,
            worker_id=config.worker_id,
            lease_s=config.handoff_lease_s,
            rng=random.SystemRandom(),
        ),
        tracing=tracing,
        clock_s=time.monotonic,
        prefill_chunk_tokens=config.prefill_chunk_tokens,
    )
    return LoadedEngine(
        engine=engine,
        model_fingerprint=version.fingerprint,
        max_model_tokens=min(
            model.config.max_position_embeddings, num_blocks * config.block_tokens
        ),
        vocab_size=model.config.vocab_size,
    )


def refuse_unbuilt_layout(config: WorkerConfig) -> None:
    """Raise UnbuiltLayout, naming the field, for more than one rank or for draft tokens."""
    for field in ("tp", "kvp", "tpa", "ep", "tpf"):
        value = getattr(config, field)
        if value != 1:
            raise UnbuiltLayout(
                f"{field}={value}: the native engine runs on one rank; set {field} to 1"
            )
    if config.draft_tokens != 0:
        raise UnbuiltLayout(
            f"draft_tokens={config.draft_tokens}: the native engine does not speculate; "
            "set draft_tokens to 0"
        )
