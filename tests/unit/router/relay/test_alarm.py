"""An alarm rings once, never early, for the moment that it was set to last."""

from __future__ import annotations

import asyncio
import time

from router.relay.alarm import Alarm

_PATIENCE_S = 10.0


async def test_it_rings_once_after_its_moment_and_can_be_set_again() -> None:
    rings: asyncio.Queue[float] = asyncio.Queue()
    alarm = Alarm(rings.put_nowait)
    for _ in range(3):
        due_s = time.monotonic() + 0.002
        alarm.set(due_s)
        late_s = await asyncio.wait_for(rings.get(), _PATIENCE_S)
        assert late_s >= 0.0
        assert time.monotonic() >= due_s + late_s
    assert rings.empty()
    alarm.close()


async def test_the_last_moment_that_was_set_counts() -> None:
    rings: asyncio.Queue[float] = asyncio.Queue()
    alarm = Alarm(rings.put_nowait)
    alarm.set(time.monotonic() + 3600.0)
    alarm.set(time.monotonic())
    await asyncio.wait_for(rings.get(), _PATIENCE_S)
    alarm.set(time.monotonic() + 3600.0)
    alarm.close()
    assert rings.empty()
