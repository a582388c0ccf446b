"""Python's search for cyclic garbage, kept from taking a sixth of a simulation's time.

Nearly everything that a simulation makes is freed by its last reference, while what stays (the
trace, the cluster, thousands of requests under way) would be gone through again and again. What is
cyclic (ended requests and their attempts, some kilobytes each) is swept out now and then.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

# Requests that end between two sweeps: their remains take about 200 MB.
_EVERY = 50_000


class Sweeper:
    """Sweeps when enough has ended."""

    def __init__(self) -> None:
        self._swept = 0

    def note(self, ended: int) -> None:
        """So many requests have ended so far."""
        if ended - self._swept >= _EVERY:
            self._swept = ended
            gc.collect()


@contextlib.contextmanager
def swept_by_hand() -> Iterator[Sweeper]:
    """No search but by the sweeper, and never through what there is now."""
    was_on = gc.isenabled()
    gc.disable()
    gc.freeze()
    try:
        yield Sweeper()
    finally:
        gc.unfreeze()
        if was_on:
            gc.enable()
