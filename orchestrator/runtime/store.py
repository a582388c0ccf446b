"""The directory's store: an embedded Valkey on a free loopback port, or the given Redis."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from orchestrator.errors import UserError
from orchestrator.runtime.child import Child, never
from orchestrator.runtime.ports import free_port

_READY_S = 20.0
_ATTEMPTS = 3


class EmbeddedStore:
    """A Valkey server that keeps nothing on disk and ends with this process."""

    def __init__(self, folder: Path, interrupted: Callable[[], bool] = never) -> None:
        self._folder = folder
        for attempt in range(_ATTEMPTS):
            # Another process may take the port between the look and the start: try again.
            self.port = free_port()
            try:
                self._child = self._start(interrupted)
                return
            except UserError:
                if attempt == _ATTEMPTS - 1:
                    raise

    def _start(self, interrupted: Callable[[], bool]) -> Child:
        data_dir = self._folder / "valkey"
        child = Child(
            "the embedded Valkey",
            ["orchestrator.runtime.valkey_process"],
            json.dumps({"port": self.port, "data_dir": str(data_dir)}),
            self._folder / "valkey.log",
        )
        try:
            child.wait_ready(_READY_S, interrupted)
        except BaseException:
            child.stop()
            raise
        return child

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """Of the process that watches over the server."""
        return self._child.pid

    @property
    def ended(self) -> bool:
        return self._child.exit_status() is not None

    def restart(self) -> None:
        """Start an empty server at the same address. Raises UserError when that fails."""
        self._child.stop()
        self._child = self._start(never)

    def stop(self) -> None:
        self._child.stop()


def check_store(url: str) -> None:
    """Raise UserError when no Redis or Valkey answers at `url`."""
    try:
        client: Redis = Redis.from_url(url, socket_timeout=3.0, socket_connect_timeout=3.0)
        with client:
            client.ping()
    except (RedisError, OSError, ValueError) as error:
        raise UserError(
            f"store {url} does not answer: {error}",
            "start it, correct the URL, or set store: embedded",
        ) from error
