"""From a worker's config to a native engine that is ready for its first step."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from workers.config import WorkerConfig
from workers.engine.load import LoadMeter
from workers.engine.native.decoder import Decoder
from workers.engine.native.departures import Departures
from workers.engine.native.draft_length import MOST_DRAFT_TOKENS, DraftLength
from workers.engine.native.engine import NativeEngine
from workers.engine.native.handoffs import RequestHandoffs
from workers.engine.native.part import (
    EPOCH,
    UnbuiltLayout,
    block_tokens_of_group,
    blocks,
    load_part,
    open_end,
    state_layout,
)
from workers.engine.native.passes import ModelPasses
from workers.engine.native.requests import Requests
from workers.engine.native.runner import ModelRunner
from workers.engine.native.scheduler import Scheduler
from workers.engine.sampling.grammar import GrammarCompiler
from workers.handoff.handoffs import Handoffs
from workers.handoff.manifest import ModelVersion
from workers.handoff.ranks import GroupRanks, RankThread
from workers.model.config import ModelConfig
from workers.parallel.group import RankGroup
from workers.parallel.rules import check_layout
from workers.state.fingerprint import model_fingerprint
from workers.state.geometry import StateGeometry
from workers.state.memory import StateMemory
from workers.telemetry import Tracing

_LOG_PROGRESS_EVERY_S = 5.0
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    """An engine and what the directory says of it."""

    engine: NativeEngine
    model_fingerprint: str
    max_model_tokens: int
    vocab_size: int
    epoch: int = EPOCH


def load_native_engine(config: WorkerConfig, tracing: Tracing) -> LoadedEngine:
    """Load weights, set memory aside, register it with NIXL, and start the other ranks, if any.

    Raises:
        CheckpointError: the checkpoint is incomplete, misshapen or of an unknown kind.
        IllegalLayout: the model cannot be cut as asked.
        UnbuiltLayout: draft tokens are asked for that cannot be made.
        RanksLost: another rank ended while it started.
    """
    refuse_unbuilt_drafts(config)
    model = ModelConfig.from_file(Path(config.model_path))
    passes, group = start_ranks(config, model)
    try:
        return _engine(config, model, passes, group, tracing)
    except BaseException:
        if group is not None:
            group.close()
        raise


def start_ranks(config: WorkerConfig, model: ModelConfig) -> tuple[ModelPasses, RankGroup | None]:
    """What rank 0 runs, and the other ranks if there are any; all have loaded their part.

    Raises: as `load_native_engine`.
    """
    layout = config.parallel
    repeat = config.role == "prefill"
    check_layout(model, layout, config.block_tokens, repeat_kv_heads=repeat)
    progress = _log_progress(time.monotonic)
    if layout.size == 1:
        return load_part(config, None, progress=progress), None
    group = RankGroup(config)
    try:
        passes = load_part(config, group.join(), group.tell, progress)
        group.wait_ready()
    except BaseException:
        group.close()
        raise
    return passes, group


def _engine(
    config: WorkerConfig,
    model: ModelConfig,
    passes: ModelPasses,
    group: RankGroup | None,
    tracing: Tracing,
) -> LoadedEngine:
    path, most = Path(config.model_path), passes.most_draft_tokens
    version = ModelVersion(model_fingerprint(model, path), EPOCH)
    forced = None if config.draft_tokens == "auto" else config.draft_tokens
    memory = StateMemory(
        blocks=blocks(config),
        block_tokens=block_tokens_of_group(config),
        max_requests=config.max_requests,
        max_checkpoints=config.max_checkpoints,
        drafts=most > 0,
    )
    layout = state_layout(config, model, passes)
    own = RankThread(open_end(config, passes, rank=0), time.monotonic)
    handoffs = Handoffs(
        own if group is None else GroupRanks(own, group),
        layout,
        version,
        worker_id=config.worker_id,
        timeout_s=config.handoff_timeout_s,
        lease_s=config.handoff_lease_s,
        rng=random.SystemRandom(),
    )
    scheduler = Scheduler(memory, config.step_tokens, config.checkpoint_tokens)
    runner = ModelRunner(passes, memory)
    grammars = GrammarCompiler(path / "tokenizer.json")
    lengths = DraftLength(most, forced)
    requests = Requests(scheduler, memory, grammars, tracing, lengths.most)
    load = _load_meter(layout.geometry)
    decoder = Decoder(runner, scheduler, lengths, time.monotonic)
    departures = Departures(
        handoffs.sender, requests, scheduler, memory, runner, decoder, time.monotonic
    )
    engine = NativeEngine(
        runner=runner,
        decoder=decoder,
        scheduler=scheduler,
        memory=memory,
        requests=requests,
        handoffs=RequestHandoffs(
            handoffs, requests, scheduler, memory, load, departures, time.monotonic
        ),
        departures=departures,
        load=load,
        clock_s=time.monotonic,
        checkpoint_tokens=config.checkpoint_tokens,
        group=group,
    )
    return LoadedEngine(
        engine=engine,
        model_fingerprint=version.fingerprint,
        max_model_tokens=min(model.max_position_embeddings, memory.total_tokens - most),
        vocab_size=model.vocab_size,
    )


def _load_meter(whole: StateGeometry) -> LoadMeter:
    """Counts hand-offs with the state of the whole model, however many ranks share it."""
    return LoadMeter(
        (whole.kv_block_bytes + whole.draft_kv_block_bytes) / whole.block_tokens,
        whole.conv_slot_bytes + whole.ssm_slot_bytes + whole.draft_hidden_bytes,
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


def refuse_unbuilt_drafts(config: WorkerConfig) -> None:
    """Raise UnbuiltLayout for a number of drafts that the engine does not make."""
    if config.draft_tokens != "auto" and not 0 <= config.draft_tokens <= MOST_DRAFT_TOKENS:
        raise UnbuiltLayout(
            f"draft_tokens={config.draft_tokens}: the engine drafts 0 to {MOST_DRAFT_TOKENS} "
            "tokens; set one of these or auto"
        )
