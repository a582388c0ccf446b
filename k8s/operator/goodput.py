"""How many requests a second meet both of their targets, for people who list services.

Routers keep sums; two answers some time apart give a rate. Each router is held against itself,
since they come and go. The figure in the status moves only when it has changed by a tenth, so that
steady traffic writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

LEAST_S = 50.0  # between two questions; a settled service is looked at once a minute
_CHANGE = 0.1


@dataclass(frozen=True, slots=True)
class Sample:
    """Requests that met both targets since each router began."""

    at_s: float
    met: Mapping[str, int]


def rate(before: Sample, now: Sample) -> float | None:
    """Requests a second; None when no router answered both times."""
    both = before.met.keys() & now.met.keys()
    seconds = now.at_s - before.at_s
    if not both or seconds <= 0.0:
        return None
    # A router that has started again counts from 0.
    return sum(max(now.met[router] - before.met[router], 0) for router in both) / seconds


def shown(measured: float | None, before: str) -> str:
    """What the status says: what it said `before` unless that is a tenth off."""
    if measured is None:
        return before
    try:
        was = float(before)
    except ValueError:
        return f"{measured:.3g}"
    near = abs(measured - was) <= _CHANGE * max(measured, was)
    return before if near else f"{measured:.3g}"
