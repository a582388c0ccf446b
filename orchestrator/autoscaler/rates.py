"""How many requests a second come, and will come when a worker that starts today serves.

A forecast is slow to believe a step, because a step looks like noise at first. So the newest counts
are held against what was expected of them: when the counts of one, two or three periods together
are as unlikely as a jump (`_UNLIKELY` standard deviations), the forecasters begin anew at the new
level. In between, noise is averaged away. Jumps that come back are expected (`recurrence.py`).
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from orchestrator.autoscaler.forecast import Chooser, Constant, Forecast
from orchestrator.autoscaler.recurrence import RecurringJumps

_UNLIKELY = 4.0
_LOOKED_AT = 3  # periods
_DISPERSION_WINDOW = 60.0  # periods


@dataclass(frozen=True, slots=True)
class Rate:
    """Requests a second.

    Attributes:
        level: of late; `doubt` is its standard deviation.
        ahead: expected at the lead time, and how.
        fell: whether it has just become less abruptly.
        fresh: whether it has jumped so lately that few periods tell the new level.
        recurring: level of a jump that is expected within the lead time; 0: none is.
    """

    level: float
    doubt: float
    ahead: Forecast
    fell: bool
    fresh: bool = False
    recurring: float = 0.0


class ArrivalRate:
    """Follows arrivals, period by period."""

    def __init__(
        self, period_s: float, lead_s: float, window_s: float, season_s: float | None
    ) -> None:
        self._period_s = period_s
        self._lead_s = lead_s
        self._window_s = window_s
        self._chooser = Chooser(period_s, lead_s, window_s, season_s)
        self._level = Constant(window_s / period_s)
        self._counted = 0.0  # periods that the level rests on, at most the window's
        self._last: deque[float] = deque(maxlen=_LOOKED_AT)
        self._dispersion = Constant(_DISPERSION_WINDOW)  # variance of counts over their mean
        self._fell = False
        self._since_jump = _LOOKED_AT  # periods
        self._now_s = 0.0  # since the beginning
        self._recurring = RecurringJumps(period_s, lead_s)

    def observe(self, arrived: int) -> None:
        """The requests of a period."""
        rate = arrived / self._period_s
        self._now_s += self._period_s
        self._last.append(rate)
        level = self._level.ahead(0)
        self._fell = False
        self._since_jump += 1
        if level is not None:
            periods = self._surprise(level)
            if periods:
                self._restart(periods)
                self._since_jump = 0
                after = self._level.ahead(0) or 0.0
                self._fell = after < level
                began_s = self._now_s - periods * self._period_s
                self._recurring.rate_changed(began_s, level, after)
                return
            expected = max(level * self._period_s, 0.5)
            excess = (arrived - level * self._period_s) ** 2 / expected
            self._dispersion.observe(min(excess, _UNLIKELY**2))
        self._take(rate)
        self._recurring.observe(self._now_s, self._level.ahead(0) or 0.0)

    def now(self) -> Rate:
        """As of the last period."""
        level = self._level.ahead(0) or 0.0
        # The window of an exponentially weighted mean is worth twice its mean age in samples.
        seconds = max(min(2.0 * self._counted, 2.0 * self._window_s / self._period_s), 1.0)
        doubt = math.sqrt(self._spread * max(level, 0.0) / (seconds * self._period_s))
        ahead = self._chooser.ahead(self._lead_s, self._period_s)
        recurring = self._recurring.expected_rps(self._now_s)
        return Rate(level, doubt, ahead, self._fell, self._since_jump < _LOOKED_AT, recurring)

    @property
    def _spread(self) -> float:
        return max(self._dispersion.ahead(0) or 1.0, 1.0)

    @property
    def burstiness(self) -> float:
        """Variance of the counts of a period over their mean: 1 for Poisson arrivals."""
        return self._spread

    def _take(self, rate: float) -> None:
        self._level.observe(rate)
        self._chooser.observe(rate)
        self._counted = min(self._counted + 1.0, self._window_s / self._period_s)

    def _surprise(self, level: float) -> int:
        """How many of the last periods are a jump away from what was before; 0: none."""
        counts = list(self._last)
        for periods in range(1, len(counts) + 1):
            mean = sum(counts[-periods:]) / periods
            expected = max(level, 1.0 / self._period_s)
            deviation = math.sqrt(self._spread * expected / (periods * self._period_s))
            # A single period may be a burst; below, one must be clear, and may not be a pause.
            limit = _UNLIKELY + (1.0 if periods == 1 else 0.0)
            if self._counted >= _LOOKED_AT and abs(mean - level) > limit * deviation:
                return periods
        return 0

    def _restart(self, periods: int) -> None:
        recent = list(self._last)[-periods:]
        self._level = Constant(self._window_s / self._period_s)
        self._chooser.restart()
        self._counted = 0.0
        for rate in recent:
            self._take(rate)
        self._counted = max(self._counted, 1.0)
