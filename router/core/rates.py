"""Measured rates on virtual time: amounts over seconds, the past counting less and less."""

from __future__ import annotations


class Rate:
    """Amount per second of the time that it took; half of it is of the last `half_life_s`."""

    __slots__ = ("_amount", "_half_life_s", "_seconds")

    def __init__(self, half_life_s: float) -> None:
        self._half_life_s = half_life_s
        self._amount = 0.0
        self._seconds = 0.0

    def add(self, amount: float, seconds: float) -> None:
        """Count what took so long; several amounts may take no time between them."""
        kept = 0.5 ** (max(seconds, 0.0) / self._half_life_s)
        self._amount = self._amount * kept + amount
        self._seconds = self._seconds * kept + max(seconds, 0.0)

    def per_s(self, idle_s: float = 0.0) -> float:
        """The rate if nothing came in the last `idle_s` seconds; 0 while nothing was measured."""
        seconds = self._seconds + idle_s
        return self._amount / seconds if self._seconds > 0.0 else 0.0
