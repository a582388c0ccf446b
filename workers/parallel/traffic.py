"""What one rank sent to others, and how long it had to wait for them.

Exists so that the cost of communication is measured where it arises: bytes by the kind of
collective, to be compared with the formulas of the papers, and *exposed* time, the part of a
collective's time that no computation covers. On a GPU collectives are queued and waiting does
not block the CPU, so there the times say how long queueing took.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class Collective(Enum):
    """What a collective is for."""

    EXCHANGE = "exchange"  # all-to-all of partial attention outputs in a KVP group
    SUM = "sum"  # all-reduce of partial sums over all ranks
    NORM_SUM = "norm_sum"  # all-reduce of sums of squares over the ranks of a Mamba group
    GATHER = "gather"  # scores or best words of the vocabulary


def _zeros() -> dict[Collective, float]:
    return dict.fromkeys(Collective, 0.0)


@dataclass(frozen=True, slots=True)
class Sent:
    """Bytes sent and seconds waited since the last `take`, by kind."""

    sent_bytes: dict[Collective, int]
    exposed_s: dict[Collective, float]

    @property
    def total_bytes(self) -> int:
        return sum(self.sent_bytes.values())

    @property
    def total_exposed_s(self) -> float:
        return sum(self.exposed_s.values())


@dataclass(slots=True)
class Traffic:
    """Counters of one rank; `take` reads and resets them, once for each step."""

    _sent_bytes: dict[Collective, int] = field(default_factory=lambda: dict.fromkeys(Collective, 0))
    _exposed_s: dict[Collective, float] = field(default_factory=_zeros)

    def add_sent(self, kind: Collective, count_bytes: int) -> None:
        """Count bytes that leave this rank."""
        self._sent_bytes[kind] += count_bytes

    def add_wait(self, kind: Collective, seconds: float) -> None:
        """Count time in which this rank could do nothing else."""
        self._exposed_s[kind] += seconds

    def take(self) -> Sent:
        """What was counted since the last time."""
        taken = Sent(self._sent_bytes, self._exposed_s)
        self._sent_bytes = dict.fromkeys(Collective, 0)
        self._exposed_s = _zeros()
        return taken
