"""What reaching Valkey or Redis may raise, in terms of its client.

Exists because under uvloop the client lets a RuntimeError through: a store that goes away while a
connection is being made closes the transport, and uvloop says so in its own way ("the handler is
closed"). Whoever waits for the store to come back would end instead.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from redis.exceptions import ConnectionError as StoreConnectionError


@contextlib.contextmanager
def reaching() -> Iterator[None]:
    """Around everything that is asked of the store: raises RedisError or OSError, nothing else."""
    try:
        yield
    except RuntimeError as error:
        raise StoreConnectionError(str(error)) from error
