"""From a worker's config to a simulated engine: the checkpoint's limits, none of its weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from workers.config import WorkerConfig
from workers.engine.events import StepEvents
from workers.engine.facts import EngineFacts
from workers.engine.simulated.engine import SimulatedEngine
from workers.engine.simulated.limits import Limits
from workers.engine.simulated.loop import SimulatedLoop
from workers.engine.simulated.prefixes import Prefixes
from workers.engine.simulated.times import LinearTimes, StepTimes
from workers.engine.surroundings import Surroundings
from workers.handoff.notifications import Notifications

_EPOCH = 0


async def open_simulated_engine(
    config: WorkerConfig, emit: Callable[[StepEvents], object]
) -> tuple[SimulatedLoop, EngineFacts]:
    """A simulated engine on the running event loop.

    Raises ValueError for a checkpoint without a readable config.json or for times of something
    unknown, and OSError for a host that no socket can be bound to.
    """
    facts = _facts(config)
    notifications = await Notifications.open(config.host)
    engine = SimulatedEngine(
        around=Surroundings.real(
            config.worker_id, facts.model_fingerprint, facts.epoch, notifications
        ),
        limits=Limits(
            max_requests=config.max_requests,
            kv_tokens=config.kv_tokens,
            step_tokens=config.step_tokens,
            vocab_size=facts.vocab_size,
            lease_s=config.handoff_lease_s,
        ),
        times=_times(config),
        prefixes=Prefixes(config.block_tokens, config.checkpoint_tokens, config.max_checkpoints),
    )
    return SimulatedLoop(engine, notifications, emit), facts


def _times(config: WorkerConfig) -> StepTimes:
    if isinstance(config.simulated, LinearTimes):
        return config.simulated
    from workers.engine.simulated.modelled import ModelledTimes

    return ModelledTimes(config.simulated, config.parallel, config.step_tokens)


def _facts(config: WorkerConfig) -> EngineFacts:
    path = Path(config.model_path) / "config.json"
    try:
        text = path.read_bytes()
        model = json.loads(text)
        longest, vocab_size = model["max_position_embeddings"], model["vocab_size"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"model_path {config.model_path}: no usable config.json: {error}") from (
            error
        )
    return EngineFacts(
        # Of the configuration alone, and marked, so that no real worker takes it for its own.
        model_fingerprint="simulated-" + hashlib.sha256(text).hexdigest()[:22],
        max_model_tokens=min(longest, config.kv_tokens),
        vocab_size=vocab_size,
        epoch=_EPOCH,
    )
