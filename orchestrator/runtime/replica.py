"""What runs inside one Ray Serve replica: one worker, for as long as the replica lives.

Ray Serve starts it, asks after its health, replaces it and stops it; requests never pass through
here, they reach the worker's own gRPC port. So Serve cannot wait for them when it stops a replica:
the replica does, before it lets go of the worker.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.runtime.worker_configs import new_worker_id
from workers.config import WorkerConfig

if TYPE_CHECKING:
    from orchestrator.runtime.worker_child import WorkerChild
    from workers.server import WorkerServer

FAILURE_SUFFIX = ".failed"
_STOP_GRACE_S = 2.0
# What a stop takes besides the drain: sessions, directory, the engine's memory.


class WorkerReplica:
    """Hosts a WorkerServer in the event loop that Serve gives to a replica."""

    _server: WorkerServer | WorkerChild | None = None

    async def __init__(  # type: ignore[misc]
        self, config_json: str, log_dir: str, drain_s: float
    ) -> None:
        """`drain_s`: how long a stop waits for the requests that run here."""
        self._drain_s = drain_s
        # Serve builds a replacement with the same arguments: the id must be this start's own.
        given = WorkerConfig.from_json(config_json)
        config = dataclasses.replace(given, worker_id=new_worker_id(given.role))
        logs = Path(log_dir)
        _log_to(logs / f"{config.worker_id}.log")
        try:
            self._server = _worker(config, logs)
            await self._server.start()
        except BaseException as error:
            # The driver shows this line; what Serve reports is a stack of several processes.
            failure = logs / f"{config.worker_id}{FAILURE_SUFFIX}"
            failure.write_text(f"{error}" or type(error).__name__, encoding="utf-8")
            logging.getLogger(__name__).exception("worker did not start")
            raise

    async def check_health(self) -> None:
        """Serve replaces the replica when this raises."""
        if self._server is not None and self._server.failure is not None:
            raise RuntimeError(f"engine failed: {self._server.failure}")

    async def __del__(self) -> None:  # Serve awaits it before it ends the process
        if self._server is not None:
            server, self._server = self._server, None
            if not await server.drain(self._drain_s):
                logging.getLogger(__name__).warning(
                    "requests were still running after %.0f s: routers go on with them elsewhere",
                    self._drain_s,
                )
            await server.stop(_STOP_GRACE_S)


def _worker(config: WorkerConfig, logs: Path) -> WorkerServer | WorkerChild:
    if config.interpreter:
        from orchestrator.runtime.worker_child import WorkerChild

        return WorkerChild(config, logs)
    # Torch is loaded here and nowhere else in the orchestrator.
    from workers.server import WorkerServer

    return WorkerServer(config)


def _log_to(path: Path) -> None:
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
