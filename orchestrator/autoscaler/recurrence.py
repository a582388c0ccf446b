"""Jumps that come back: a rate that has jumped at equal distances will jump again.

Timers cause such traffic (reports on the hour, agents that wake together), and it is the one kind
of step that can be known before it comes, without anybody saying how long a season is:

    next jump = last one + the time between the last two

A first guess is made after two jumps. When it fails, the next one waits until two distances agree,
so traffic that jumps at random is guessed wrong once, which costs some workers for the time of a
cold start.
"""

from __future__ import annotations

from dataclasses import dataclass

_RISE = 1.5  # that a rate must grow by to have jumped
_AGREE = 0.1  # of a distance, by which another one may differ
_PUNCTUAL = 0.05  # of a distance, by which a jump may be early or late


@dataclass(slots=True)
class _Jump:
    """When it began, and how high the rate was before it went down again."""

    at_s: float
    level_rps: float
    over: bool = False


class RecurringJumps:
    """Remembers the last jumps up and expects the next."""

    def __init__(self, period_s: float, lead_s: float) -> None:
        self._period_s = period_s
        self._lead_s = lead_s
        self._jumps: list[_Jump] = []
        self._due_s: float | None = None  # when the next one is expected
        self._was_wrong = False

    def rate_changed(self, at_s: float, before_rps: float, after_rps: float) -> None:
        """The rate went from one level to another at that moment."""
        open_one = self._jumps[-1] if self._jumps and not self._jumps[-1].over else None
        if after_rps < before_rps:
            if open_one is not None:
                open_one.over = True
        elif open_one is not None:
            pass  # it goes on rising
        elif after_rps > _RISE * before_rps:
            self._jumps = [*self._jumps[-2:], _Jump(at_s, after_rps)]
            self._due_s = self._next_s()

    def observe(self, now_s: float, level_rps: float) -> None:
        """The level of late. Averages settle some periods after a jump, so the last one counts."""
        if self._jumps and not self._jumps[-1].over:
            self._jumps[-1].level_rps = level_rps
        if self._due_s is not None and now_s > self._due_s + self._slack_s():
            self._was_wrong, self._due_s = True, None

    def expected_rps(self, now_s: float) -> float:
        """The level to be ready for, from the lead time before the jump until it is overdue; 0
        while none is expected that soon."""
        if self._due_s is None or now_s + self._lead_s < self._due_s - self._slack_s():
            return 0.0
        past = [jump.level_rps for jump in self._jumps if jump.over]
        return max(past, default=0.0)

    def _next_s(self) -> float | None:
        at = [jump.at_s for jump in self._jumps]
        if len(at) < 2:
            return None
        distance_s = at[-1] - at[-2]
        if len(at) > 2 and abs((at[-2] - at[-3]) - distance_s) <= _AGREE * distance_s:
            self._was_wrong = False
        elif self._was_wrong:
            return None
        return at[-1] + distance_s

    def _slack_s(self) -> float:
        distance_s = self._jumps[-1].at_s - self._jumps[-2].at_s
        return max(_PUNCTUAL * distance_s / 2.0, 2.0 * self._period_s)
