"""Opens the engine that a worker's config asks for.

Each is imported only when it is asked for: a simulated worker needs no torch, and starts without.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from workers.config import WorkerConfig
from workers.engine.events import StepEvents
from workers.engine.facts import EngineFacts
from workers.engine.loop import EngineLoop, RunningEngine
from workers.telemetry import Tracing

_AFTER_COLLECTIVES_S = 2.0


async def open_engine(
    config: WorkerConfig, tracing: Tracing, emit: Callable[[StepEvents], object]
) -> tuple[RunningEngine, EngineFacts]:
    """The engine, not started yet; `emit` is called on this event loop.

    Raises ValueError for what the config asks and the engine does not have (CheckpointError and
    UnbuiltLayout are ones), and OSError.
    """
    if config.engine == "simulated":
        from workers.engine.simulated.loading import open_simulated_engine

        return await open_simulated_engine(config, emit)
    if config.engine == "vllm":
        from workers.engine.vllm.loading import open_vllm_engine

        return await open_vllm_engine(config, emit)
    from workers.engine.native.loading import load_native_engine

    loaded = await asyncio.to_thread(load_native_engine, config, tracing)
    loop = asyncio.get_running_loop()
    step_limit_s = config.step_limit_s
    if config.parallel.size > 1:
        # Ranks that are waited for in vain are found by their own time-out, and named.
        step_limit_s = max(step_limit_s, config.collective_timeout_s + _AFTER_COLLECTIVES_S)
    running = EngineLoop(
        loaded.engine, lambda events: loop.call_soon_threadsafe(emit, events), step_limit_s
    )
    return running, EngineFacts(
        loaded.model_fingerprint, loaded.max_model_tokens, loaded.vocab_size, loaded.epoch
    )
