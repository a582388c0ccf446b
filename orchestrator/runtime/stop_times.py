"""How long Ray is given for a worker that goes: of `drain_s`, in which it finishes its requests."""

from __future__ import annotations

_STOP_MARGIN_S = 8.0
_WAIT_SHARE = 0.5


def shutdown_timeout_s(drain_s: float) -> float:
    """What Ray Serve must give a replica that may drain for so long before it kills it."""
    return drain_s + _STOP_MARGIN_S


def drain_deadline_s(drain_s: float) -> float:
    """The deadline of a node that goes, from now.

    Serve starts a replacement first, and waits for it until what is left before the deadline is
    the time that the old replica must be given: without more than that, it stops it at once and
    nobody serves until the replacement does. Half of the drain is for waiting; the rest is then
    left to finish in, since the pod ends after the whole of it.
    """
    return shutdown_timeout_s(drain_s) + _WAIT_SHARE * drain_s
