"""Adds up the roofline times of operations, by kind and by what bounds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from workers.perf.arrays import Floats
from workers.perf.efficiency import KINDS, Efficiency, Kind
from workers.perf.hardware import HardwareSpec
from workers.perf.precision import Math

COMPUTE, MEMORY, LINK = "compute", "memory", "communication"


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of all layers together. `parts` is by (kind, bound) where asked for, else empty."""

    total_s: Floats
    parts: Mapping[tuple[str, str], Floats]


class Meter:
    """One operation takes the longer of computing and of moving its bytes: the roofline (Williams,
    Waterman and Patterson, 2009)."""

    def __init__(self, hardware: HardwareSpec, efficiency: Efficiency, detailed: bool) -> None:
        self._hardware = hardware
        self._efficiency = efficiency
        self._memory = {
            kind: 1.0 / (hardware.memory_bytes_per_s * efficiency.memory[kind]) for kind in KINDS
        }
        self._detailed = detailed
        self._total: Floats | float = 0.0
        self._parts: dict[tuple[str, str], Floats] = {}

    def operation(
        self, kind: Kind, count: float, flops: Floats, math: Math, moved_bytes: Floats | float
    ) -> Floats:
        """`count` equal operations one after another; answers their time in seconds."""
        rate = self._hardware.rate(math) * self._efficiency.compute[kind]
        compute_s = flops * (count / rate)
        memory_s = moved_bytes * (count * self._memory[kind])
        time_s = np.maximum(compute_s, memory_s) + count * self._efficiency.least_s(kind)
        self._total = self._total + time_s
        if self._detailed:
            computing = compute_s > memory_s
            self._note(kind, COMPUTE, np.where(computing, time_s, 0.0))
            self._note(kind, MEMORY, np.where(computing, 0.0, time_s))
        return time_s

    def exchange(self, name: str, time_s: Floats) -> None:
        """Time that communication takes and nothing hides."""
        self._total = self._total + time_s
        if self._detailed:
            self._note(name, LINK, time_s)

    def constant(self, name: str, time_s: Floats) -> None:
        """Time that no peak explains."""
        self._total = self._total + time_s
        if self._detailed:
            self._note(name, "overhead", time_s)

    def times(self) -> Times:
        """What was added up."""
        return Times(np.asarray(self._total, dtype=np.float64), self._parts)

    def _note(self, kind: str, bound: str, time_s: Floats) -> None:
        key = (kind, bound)
        self._parts[key] = self._parts[key] + time_s if key in self._parts else time_s
