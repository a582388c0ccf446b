"""A worker whose engine needs another interpreter: a child of the replica, with a worker's manners.

vLLM pins versions of what Tandem uses too, so the two cannot share an environment. The child is the
whole worker, sessions and directory included: nothing stands between a router and vLLM's steps but
what stands there for every engine, and the replica only starts, watches and ends it.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from orchestrator.runtime.child import Child
from workers.config import WorkerConfig
from workers.registry import WorkerRecord

_READY_S = 3600.0  # weights of hundreds of gigabytes, and graphs to capture
_LOG_SUFFIX = ".vllm.log"


class WorkerEnded(Exception):
    """The child ended although nobody asked it to."""


class WorkerChild:
    """What a replica asks of a WorkerServer, of a worker in a process of its own."""

    def __init__(self, config: WorkerConfig, log_dir: Path) -> None:
        self._config = config
        self._log_path = log_dir / f"{config.worker_id}{_LOG_SUFFIX}"
        self._child: Child | None = None
        self._stopping = False

    async def start(self) -> WorkerRecord:
        """Wait until the worker serves. Raises UserError when it does not come up."""
        self._child = Child(
            self._config.worker_id,
            ["workers.server"],
            self._config.to_json(),
            self._log_path,
            self._config.interpreter,
        )
        try:
            line = await asyncio.to_thread(self._child.wait_ready, _READY_S, lambda: self._stopping)
        except BaseException:
            self._stopping = True
            await asyncio.to_thread(self._child.stop, 0.0)
            raise
        return WorkerRecord.from_json(line)

    @property
    def failure(self) -> BaseException | None:
        """What ended the worker, if something did."""
        if self._child is None or self._stopping or self._child.exit_status() is None:
            return None
        return WorkerEnded(str(self._child.ended_error()))

    async def drain(self, timeout_s: float) -> bool:
        """Have it finish what it has; False when that takes longer than `timeout_s`."""
        if self._child is None or self._child.exit_status() is not None:
            return True
        self._stopping = True
        self._child.drain(timeout_s)
        return await asyncio.to_thread(self._child.wait_ended, timeout_s)

    async def stop(self, grace_s: float) -> None:
        """End it, with all processes of vLLM."""
        self._stopping = True
        if self._child is not None:
            await asyncio.to_thread(self._child.stop, grace_s)
