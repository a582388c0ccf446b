"""A Ray of our own on this machine, bound to the loopback and quiet.

Ray does what it is good at: it places, starts, watches and replaces workers. Nothing of it is
reachable from outside, no dashboard runs, and its files live in a folder that goes with it.
"""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path

import psutil

from orchestrator.runtime.child import Interrupted

_OBJECT_STORE_BYTES = 80 * 2**20  # nearly Ray's minimum: tokens and weights never pass through it

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Despite its name: 0 keeps Ray's own ports on 127.0.0.1 on every platform.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Workers run in the environment that started us, also below `uv run`.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}


def start_ray(temp_dir: Path, cpus: int, gpus: bool) -> None:
    """Start Ray and connect to it. `cpus` are logical ones: Ray counts, it does not pin."""
    # Read when Ray is imported, so it must not have been before.
    os.environ.update(_ENVIRONMENT)
    import ray  # noqa: F401 - it reads its environment here

    logging.getLogger("ray").setLevel(logging.ERROR)
    # Ray takes SIGTERM for itself; whoever started us decides what a stop means.
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        _init(temp_dir, cpus, gpus)
    except SystemExit as error:
        # Ray's answer to a SIGTERM that came in between.
        raise Interrupted from error
    finally:
        signal.signal(signal.SIGTERM, on_sigterm)


def _init(temp_dir: Path, cpus: int, gpus: bool) -> None:
    import ray

    ray.init(
        address="local",
        num_cpus=max(cpus, os.cpu_count() or 1),
        num_gpus=None if gpus else 0,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        namespace="tandem",
        object_store_memory=_OBJECT_STORE_BYTES,
        _temp_dir=str(temp_dir),
        _node_ip_address="127.0.0.1",
    )


def vital_processes() -> list[psutil.Process]:
    """The processes without which a Ray that this process started cannot replace workers."""
    return [
        child for child in psutil.Process().children() if child.name() in ("gcs_server", "raylet")
    ]


def stop_ray() -> None:
    """End Ray and all its processes; harmless when it never started."""
    import ray

    ray.shutdown()
