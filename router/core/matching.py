"""Whether prefill, link and decode run at the same rate, measured while the router works.

Everything is an integral over virtual time of what was in use and what there was, so whoever wants
a rate over some time takes the difference of two snapshots. The work that flow control does is
in `placement.py`; this says how well it goes.

    busy share of a pool = integral of what is in use / integral of what there is
    matched_ratio        = the smaller busy share of prefill and decode / the larger one

A ratio of 1 means that neither pool idles behind the other. `waited` tells which resource the first
in the queue waited for, and how long.
"""

from __future__ import annotations

from dataclasses import dataclass

from router.core.placement import Blocked


@dataclass(frozen=True, slots=True)
class MatchReport:
    """Integrals since the router began; shares and ratio of the whole time."""

    seconds: float
    prefill_busy_s: float  # workers with prompts to read, times seconds
    prefill_capacity_s: float
    decode_busy_s: float  # requests on decode workers, times seconds
    decode_capacity_s: float
    link_byte_s: float  # bytes promised to the link, times seconds
    waited_s: dict[str, float]  # by resource: what the first in the queue waited for

    @property
    def prefill_idle_share(self) -> float:
        """Of the prefill workers' time; 1 when there is none."""
        return 1.0 - _share(self.prefill_busy_s, self.prefill_capacity_s)

    @property
    def decode_idle_share(self) -> float:
        """Of the decode workers' slots; 1 when there is none."""
        return 1.0 - _share(self.decode_busy_s, self.decode_capacity_s)

    @property
    def matched_ratio(self) -> float | None:
        """None while nothing has run, or there is no prefill pool to match."""
        shares = sorted((1.0 - self.prefill_idle_share, 1.0 - self.decode_idle_share))
        if not self.prefill_capacity_s or not self.decode_capacity_s or not shares[1]:
            return None
        return shares[0] / shares[1]

    def since(self, earlier: MatchReport) -> MatchReport:
        """What happened between two reports."""
        return MatchReport(
            self.seconds - earlier.seconds,
            self.prefill_busy_s - earlier.prefill_busy_s,
            self.prefill_capacity_s - earlier.prefill_capacity_s,
            self.decode_busy_s - earlier.decode_busy_s,
            self.decode_capacity_s - earlier.decode_capacity_s,
            self.link_byte_s - earlier.link_byte_s,
            {name: waited - earlier.waited_s[name] for name, waited in self.waited_s.items()},
        )


class RateMatch:
    """Integrates what was true between one event and the next."""

    def __init__(self) -> None:
        self._last_s: float | None = None
        self._began_s = 0.0
        self._prefill = self._prefill_capacity = 0.0
        self._decode = self._decode_capacity = 0.0
        self._link = 0.0
        self._waited = dict.fromkeys(Blocked, 0.0)

    def advance(
        self,
        now_s: float,
        prefill: tuple[float, float],
        decode: tuple[float, float],
        link_bytes: float,
        blocked: Blocked | None,
    ) -> None:
        """Until now these were (in use, all there is), and the queue's first waited for that."""
        if self._last_s is None:
            self._last_s = self._began_s = now_s
            return
        seconds = now_s - self._last_s
        if seconds <= 0.0:
            return
        self._last_s = now_s
        self._prefill += prefill[0] * seconds
        self._prefill_capacity += prefill[1] * seconds
        self._decode += decode[0] * seconds
        self._decode_capacity += decode[1] * seconds
        self._link += link_bytes * seconds
        if blocked is not None:
            self._waited[blocked] += seconds

    @property
    def waited_s(self) -> tuple[float, ...]:
        """So far, in the order of Blocked."""
        return tuple(self._waited.values())

    def report(self) -> MatchReport:
        """As of the last event."""
        return MatchReport(
            seconds=0.0 if self._last_s is None else self._last_s - self._began_s,
            prefill_busy_s=self._prefill,
            prefill_capacity_s=self._prefill_capacity,
            decode_busy_s=self._decode,
            decode_capacity_s=self._decode_capacity,
            link_byte_s=self._link,
            waited_s={name.value: waited for name, waited in self._waited.items()},
        )


def _share(used: float, capacity: float) -> float:
    return min(used / capacity, 1.0) if capacity > 0.0 else 0.0
