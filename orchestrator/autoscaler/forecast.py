"""What a series will be so many seconds from now: three simple forecasters, judged by their errors.

- constant: it stays as it is; an exponentially weighted mean.
- trend: it goes on as it went; Holt's double exponential smoothing with a damped slope (Gardner and
  McKenzie, 1985).
- seasonal: it repeats; the level times the ratio that the same moment of earlier seasons had to
  theirs (multiplicative Holt-Winters with fixed smoothing).

Each is asked at every step for what is `lead_s` ahead, and when that time has come its error is
known. The one with the smallest discounted mean absolute error is believed; constant is believed
until another was better by a margin, so noise does not choose. The error is the forecast's own
measure of doubt: `spread`.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

Method = Literal["constant", "trend", "seasonal"]
_MARGIN = 0.85  # of the error of `constant` that another must stay below
_KEPT = 0.97  # of the weight of earlier errors, with each new one
_LEAST_ERRORS = 12

_Errors: TypeAlias = tuple[float, float, int]  # discounted sum and weight, and how many


@dataclass(frozen=True, slots=True)
class Forecast:
    """A value expected, by which method, and how far such forecasts were off on average."""

    value: float
    method: Method
    spread: float


class Forecaster(Protocol):
    """Takes a series in at equal steps."""

    def restart(self) -> None:
        """Forget the level: the series has jumped."""

    def observe(self, value: float) -> None:
        """The value of the step that has ended."""

    def ahead(self, steps: int) -> float | None:
        """The value so many steps from now; None: not known yet."""


class Constant:
    """Exponentially weighted mean; `window` is the mean age of what counts, in steps."""

    def __init__(self, window: float) -> None:
        self._keep = 1.0 - 1.0 / max(window, 1.0)
        self._sum = self._weight = 0.0

    def restart(self) -> None:
        self._sum = self._weight = 0.0

    def observe(self, value: float) -> None:
        self._sum = self._sum * self._keep + value
        self._weight = self._weight * self._keep + 1.0

    def ahead(self, steps: int) -> float | None:
        del steps
        return self._sum / self._weight if self._weight else None


class Trend:
    """Level and slope, both smoothed; the slope fades by `damping` with every step ahead."""

    def __init__(self, window: float, damping: float = 0.98) -> None:
        self._alpha = 1.0 / max(window, 1.0)
        self._beta = self._alpha / 2.0
        self._damping = damping
        self._level: float | None = None
        self._slope = 0.0

    def restart(self) -> None:
        self._level, self._slope = None, 0.0

    def observe(self, value: float) -> None:
        if self._level is None:
            self._level = value
            return
        before, faded = self._level, self._slope * self._damping
        self._level = self._alpha * value + (1.0 - self._alpha) * (before + faded)
        self._slope = self._beta * (self._level - before) + (1.0 - self._beta) * faded

    def ahead(self, steps: int) -> float | None:
        if self._level is None:
            return None
        reach = self._damping * (1.0 - self._damping**steps) / (1.0 - self._damping)
        return max(self._level + self._slope * reach, 0.0)


class Seasonal:
    """The level times the shape of a season of `season` steps; needs one whole season."""

    def __init__(self, window: float, season: int) -> None:
        self._level = Constant(window)
        self._season = season
        self._seen: deque[float] = deque(maxlen=season)
        self._half = max(int(window), 1)

    def restart(self) -> None:
        self._level.restart()

    def observe(self, value: float) -> None:
        self._level.observe(value)
        self._seen.append(value)

    def ahead(self, steps: int) -> float | None:
        level = self._level.ahead(0)
        if level is None or len(self._seen) < self._season or steps >= self._season:
            return None
        # `_seen[0]` is one season before the step to come.
        then, at = self._around(0, before=True), self._around(steps, before=False)
        return level * at / then if then > 0.0 else at

    def _around(self, index: int, *, before: bool) -> float:
        low = index - self._half if before else index - self._half // 2
        picked = [self._seen[(low + n) % self._season] for n in range(self._half)]
        return sum(picked) / len(picked)


class Chooser:
    """Runs all forecasters side by side and believes the one that has been right.

    Args:
        period_s: between observations.
        lead_s: how far ahead forecasts are judged.
        window_s: over which noise is averaged.
        season_s: length of a season; None: none is known.
    """

    def __init__(
        self, period_s: float, lead_s: float, window_s: float, season_s: float | None = None
    ) -> None:
        window = window_s / period_s
        self._steps = max(math.ceil(lead_s / period_s), 1)
        self._all: dict[Method, Forecaster] = {
            "constant": Constant(window),
            "trend": Trend(window),
        }
        if season_s is not None:
            self._all["seasonal"] = Seasonal(window, max(round(season_s / period_s), 2))
        self._asked: dict[Method, deque[float | None]] = {name: deque() for name in self._all}
        self._errors: dict[Method, tuple[float, float, int]] = dict.fromkeys(
            self._all, (0.0, 0.0, 0)
        )
        self._recent = Constant(max(window / 2.0, 1.0))

    def observe(self, value: float) -> None:
        """The value of the step that has ended."""
        self._recent.observe(value)
        actual = self._recent.ahead(0) or 0.0
        for name, forecaster in self._all.items():
            asked = self._asked[name]
            if len(asked) >= self._steps:
                self._judge(name, asked.popleft(), actual)
            forecaster.observe(value)
            asked.append(forecaster.ahead(self._steps))

    def ahead(self, lead_s: float, period_s: float) -> Forecast:
        """The value expected `lead_s` from now."""
        steps = max(math.ceil(lead_s / period_s), 1)
        method = self._best()
        value = self._all[method].ahead(steps)
        if value is None:
            method, value = "constant", self._all["constant"].ahead(steps)
        return Forecast(max(value or 0.0, 0.0), method, self._error(method) or 0.0)

    def restart(self) -> None:
        """The series has jumped: what was forecast before says nothing about the forecasters."""
        self._recent.restart()
        for name, forecaster in self._all.items():
            forecaster.restart()
            self._asked[name] = deque([None] * len(self._asked[name]))

    def _judge(self, name: Method, forecast: float | None, actual: float) -> None:
        if forecast is None:
            return
        total, weight, count = self._errors[name]
        error = abs(forecast - actual)
        self._errors[name] = total * _KEPT + error, weight * _KEPT + 1.0, count + 1

    def _error(self, name: Method) -> float | None:
        total, weight, count = self._errors[name]
        return total / weight if count >= _LEAST_ERRORS else None

    def _best(self) -> Method:
        best: Method = "constant"
        least = self._error("constant")
        if least is None:
            return best
        least *= _MARGIN
        for name in self._all:
            error = self._error(name)
            if name != "constant" and error is not None and error < least:
                best, least = name, error
        return best
