"""How much a peer may make a connection do for nothing: rapid resets, pings, empty frames. Pure.

Every frame costs this side more than its sender, and some mean nothing at all, so that a peer could
keep the router busy without asking for anything (CVE-2023-44487: opening and resetting streams;
CVE-2019-9512, 9515, 9517, 9518: pings, settings, windows, empty frames). Such frames are paid for
from a budget that work refills, and time a little: a client that does what it came for never meets
the limit, however fast it is.
"""

from __future__ import annotations

from typing import Final

# What a peer may do for nothing at once, and again in each second.
BURST: Final = 1000.0
PER_S: Final = 100.0
# A message that was taken or sent pays for a window update of stream and connection, and for the
# ping with which clients measure the bandwidth.
_FOR_WORK: Final = 3.0
# A stream that is broken off so soon, and before anything was answered, only made work.
RAPID_S: Final = 1.0
RAPID_RESET: Final = 8.0


class Budget:
    """What one peer has left; `spend` says when it is nothing."""

    def __init__(self, now_s: float) -> None:
        self._left = BURST
        self._filled_s = now_s

    def work(self) -> None:
        """A message was sent, or a part of one taken."""
        self._left += _FOR_WORK  # `spend` keeps it from growing beyond all bounds

    def spend(self, amount: float, now_s: float) -> bool:
        """Pay for a frame; False when the peer has done too much for nothing."""
        self._left = min(BURST, self._left + (now_s - self._filled_s) * PER_S)
        self._filled_s = now_s
        self._left -= amount
        return self._left >= 0.0
