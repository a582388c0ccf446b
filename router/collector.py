"""How a router process collects garbage: seldom, because it makes little of it.

A request is a few dozen objects that all end with it and form no cycles; looking for some at every
700th allocation takes a quarter of the core's time.
"""

from __future__ import annotations

import gc

# A young collection for each so many objects more: about a millisecond, a few times a second.
_YOUNG_OBJECTS = 20_000


def collect_seldom() -> None:
    """Call once, when everything that lives for ever has been made."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, 20, 20)
