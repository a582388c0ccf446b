"""How long tokens may wait for those that follow, so that one message carries several.

A message costs the router about ten times what a token in it costs, so under load fewer and larger
messages are what keeps the loop ahead; below half load nothing is gained by waiting. In between the
wait grows with the load, and since waiting lowers the load the two settle where they meet.
"""

from __future__ import annotations

from typing import Final

# The load at which tokens begin to wait, and the one at which they wait longest.
_FREE_LOAD: Final = 0.5
_FULL_LOAD: Final = 0.7
PROMISED_HOLD_S: Final = 0.025
# The difference is for timers, which come up to a millisecond late, and for what stands before them
# on the loop.
LONGEST_HOLD_S: Final = 0.016
# How often to look. Short, so that a burst is met within about a tenth of a second.
SAMPLE_S: Final = 0.025
_WEIGHT: Final = 0.2
# A loop that is late by this much is as loaded as one that is half busy.
_LATE_S: Final = 0.005


class Pacer:
    """Measures the load of this process and says how long tokens may wait.

    Load is processor time over time, where 1 means that none is left: a router is one busy thread
    and gRPC's helpers. Where others take the processors, its share is small although it is behind,
    and what tells is how late its timers come.
    """

    def __init__(self, now_s: float, cpu_s: float) -> None:
        self._sampled_s = now_s
        self._cpu_s = cpu_s
        self.load = 0.0
        self.hold_s = 0.0

    def sample(self, now_s: float, cpu_s: float, late_s: float) -> None:
        """Take in the processor time used so far, as of now, and how late a timer came."""
        elapsed_s = now_s - self._sampled_s
        if elapsed_s <= 0.0:
            return
        busy = (cpu_s - self._cpu_s) / elapsed_s
        load = max(busy, late_s / (late_s + _LATE_S))
        self._sampled_s, self._cpu_s = now_s, cpu_s
        # After a long pause the average says nothing; one sample does.
        weight = _WEIGHT if elapsed_s < 4 * SAMPLE_S + late_s else 1.0
        self.load += weight * (load - self.load)
        self.hold_s = hold_for(self.load)


def hold_for(load: float) -> float:
    """The longest wait of a token, in seconds, at a load."""
    share = (load - _FREE_LOAD) / (_FULL_LOAD - _FREE_LOAD)
    return LONGEST_HOLD_S * min(1.0, max(0.0, share))
