"""A world for each test, closed after it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.k8s.world import World


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()
