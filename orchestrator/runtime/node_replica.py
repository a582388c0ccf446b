"""A replica on a machine of several: it listens where the others reach it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from orchestrator.runtime.replica import WorkerReplica
from workers.config import WorkerConfig


class NodeReplica(WorkerReplica):
    """A worker that other machines reach at its node's address."""

    async def __init__(  # type: ignore[misc]
        self, config_json: str, log_dir: str, drain_s: float
    ) -> None:
        await super().__init__(_for_this_node(config_json, log_dir), log_dir, drain_s)


def _for_this_node(config_json: str, log_dir: str) -> str:
    import ray

    Path(log_dir).mkdir(parents=True, exist_ok=True)
    host: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    return dataclasses.replace(WorkerConfig.from_json(config_json), host=host).to_json()
