"""Python's search for cyclic garbage, kept from taking a fifth of a simulation's time.

Nearly everything that a simulation makes is freed by its last reference, while what stays (the
trace, the cluster) is large and would be gone through again and again.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

# Objects made between two searches.
_EVERY = 200_000


@contextlib.contextmanager
def rare_collections() -> Iterator[None]:
    """Search rarely, and never through what there is now."""
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(_EVERY, *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
