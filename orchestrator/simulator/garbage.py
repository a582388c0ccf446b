"""Python's search for cyclic garbage, kept from taking a sixth of a simulation's time.

Nearly everything that a simulation makes is freed by its last reference, while what stays (the
trace, the cluster, thousands of requests under way) would be gone through again and again. What is
cyclic is swept out now and then, ever more seldom while there is nothing to sweep.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

# Requests that end before the first sweep: were their remains cyclic, they would take 400 MB.
_FIRST = 100_000


class Sweeper:
    """Sweeps when enough has ended."""

    def __init__(self) -> None:
        self._swept = 0
        self._every = _FIRST

    def note(self, ended: int) -> None:
        """So many requests have ended so far."""
        if ended - self._swept >= self._every:
            self._swept = ended
            self._every = _FIRST if gc.collect() else 2 * self._every


@contextlib.contextmanager
def swept_by_hand() -> Iterator[Sweeper]:
    """No search but by the sweeper, and never through what there is now."""
    was_on = gc.isenabled()
    gc.disable()
    gc.freeze()
    try:
        yield Sweeper()
    finally:
        # All that is left counts as old, and is not searched at the next opportunity.
        gc.freeze()
        gc.unfreeze()
        if was_on:
            gc.enable()
