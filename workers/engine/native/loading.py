"""From a worker's config to a native engine that is ready for its first step."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from workers.checkpoint import load_model
from workers.config import WorkerConfig
from workers.engine.native.decoder import Decoder
from workers.engine.native.draft_length import MOST_DRAFT_TOKENS, DraftLength
from workers.engine.native.engine import NativeEngine
from workers.engine.native.runner import ModelRunner
from workers.engine.native.scheduler import Scheduler
from workers.engine.sampling.grammar import GrammarCompiler
from workers.handoff.agent import NixlAgent
from workers.handoff.handoffs import Handoffs
from workers.handoff.manifest import ModelVersion
from workers.handoff.rank_end import RankEnd
from workers.handoff.ranks import RankThread
from workers.model.allocator import keep_freed_memory
from workers.model.hybrid import HybridModel
from workers.state.fingerprint import model_fingerprint
from workers.state.geometry import StateGeometry
from workers.state.layout import StateLayout
from workers.state.memory import StateMemory
from workers.state.store import StateStore
from workers.telemetry import Tracing

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_EPOCH = 0
_LOG_PROGRESS_EVERY_S = 5.0
_LOG = logging.getLogger(__name__)


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
    keep_freed_memory()
    device = torch.device(config.device)
    dtype = _DTYPES[config.dtype]
    path = Path(config.model_path)
    model = load_model(path, dtype, device, progress=_log_progress(time.monotonic))
    version = ModelVersion(model_fingerprint(model.config, path), _EPOCH)
    lengths = _draft_lengths(config, model)
    geometry = StateGeometry.from_config(
        model.config, block_tokens=config.block_tokens, dtype=dtype, max_draft_tokens=lengths.most
    )
    num_blocks = -(-config.kv_tokens // config.block_tokens)
    memory = StateMemory(
        blocks=num_blocks,
        block_tokens=config.block_tokens,
        max_requests=config.max_requests,
        max_checkpoints=config.max_checkpoints,
        drafts=lengths.most > 0,
    )
    slots = config.max_requests + config.max_checkpoints
    store = StateStore(geometry, blocks=num_blocks, slots=slots, device=device)
    layout = StateLayout(geometry)
    agent = NixlAgent(config.worker_id)
    end = RankEnd(agent, store, layout, 0, version, time.monotonic)
    scheduler = Scheduler(memory, config.step_tokens, config.checkpoint_tokens)
    runner = ModelRunner(model, store, memory, device)
    engine = NativeEngine(
        runner=runner,
        decoder=Decoder(runner, scheduler, lengths, time.monotonic),
        scheduler=scheduler,
        memory=memory,
        store=store,
        handoffs=Handoffs(
            RankThread(end, time.monotonic),
            layout,
            version,
            worker_id=config.worker_id,
            timeout_s=config.handoff_timeout_s,
            lease_s=config.handoff_lease_s,
            rng=random.SystemRandom(),
        ),
        grammars=GrammarCompiler(path / "tokenizer.json"),
        tracing=tracing,
        clock_s=time.monotonic,
        checkpoint_tokens=config.checkpoint_tokens,
    )
    kv_tokens = num_blocks * config.block_tokens - lengths.most
    return LoadedEngine(
        engine=engine,
        model_fingerprint=version.fingerprint,
        max_model_tokens=min(model.config.max_position_embeddings, kv_tokens),
        vocab_size=model.config.vocab_size,
    )


def _log_progress(clock_s: Callable[[], float]) -> Callable[[int, int], None]:
    """Write how far loading is, every few seconds: a worker has no terminal."""
    logged_s = clock_s()

    def report(read_bytes: int, total_bytes: int) -> None:
        nonlocal logged_s
        if clock_s() - logged_s >= _LOG_PROGRESS_EVERY_S:
            logged_s = clock_s()
            _LOG.info("loading weights: %.1f of %.1f GB", read_bytes / 1e9, total_bytes / 1e9)

    return report


def _draft_lengths(config: WorkerConfig, model: HybridModel) -> DraftLength:
    """The draft lengths that the config asks for, as far as the model can draft."""
    if config.draft_tokens == "auto":
        return DraftLength(MOST_DRAFT_TOKENS if model.weights.mtp is not None else 0)
    if config.draft_tokens and model.weights.mtp is None:
        raise UnbuiltLayout(
            f"draft_tokens={config.draft_tokens}: {config.model_path} has no MTP block; "
            "set draft_tokens to 0 or auto"
        )
    return DraftLength(config.draft_tokens, forced=config.draft_tokens)


def refuse_unbuilt_layout(config: WorkerConfig) -> None:
    """Raise UnbuiltLayout, naming the field, for more than one rank or too many drafts."""
    for field in ("tp", "kvp", "tpa", "ep", "tpf"):
        value = getattr(config, field)
        if value != 1:
            raise UnbuiltLayout(
                f"{field}={value}: the native engine runs on one rank; set {field} to 1"
            )
    if config.draft_tokens != "auto" and not 0 <= config.draft_tokens <= MOST_DRAFT_TOKENS:
        raise UnbuiltLayout(
            f"draft_tokens={config.draft_tokens}: the engine drafts 0 to {MOST_DRAFT_TOKENS} "
            "tokens; set one of these or auto"
        )
