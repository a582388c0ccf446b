"""Candidate ways to spread one model over devices, as a structure of arrays.

Attention: DP groups, each of KVP x TPA ranks. Experts: TPF x EP over the same ranks (Helix, arXiv
2507.07120, section 2). PP stages of such groups follow each other. Plain tensor parallelism is
tpa = tpf = n, attention data parallelism with expert parallelism dp = ep = n, TP attention with EP
experts tpa = ep = n.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields

import numpy as np

from workers.perf.arrays import Booleans, Floats, Integers


@dataclass(frozen=True, slots=True)
class Layout:
    """One layout; the names of its sizes are those of `Layouts`."""

    pp: int = 1
    dp: int = 1
    kvp: int = 1
    tpa: int = 1
    tpf: int = 1
    ep: int = 1
    hopb: bool = False

    @property
    def ranks(self) -> int:
        """Devices of an instance."""
        return self.pp * self.dp * self.kvp * self.tpa

    def __str__(self) -> str:
        sizes = [
            f"{name.upper()}{value}"
            for name, value in (
                ("pp", self.pp),
                ("dp", self.dp),
                ("kvp", self.kvp),
                ("tpa", self.tpa),
                ("tpf", self.tpf),
                ("ep", self.ep),
            )
            if value > 1
        ]
        return " ".join([*sizes, "HOP-B"] if self.hopb else sizes) or "TP1"


@dataclass(frozen=True, slots=True, eq=False)
class Layouts:
    """Arrays of one shape, one element for each candidate."""

    pp: Integers
    dp: Integers
    kvp: Integers
    tpa: Integers
    tpf: Integers
    ep: Integers
    hopb: Booleans

    @classmethod
    def of(cls, layouts: Iterable[Layout]) -> Layouts:
        """From single layouts."""
        rows = list(layouts)
        columns = {
            field.name: np.array([getattr(row, field.name) for row in rows])
            for field in fields(cls)
        }
        return cls(**columns)

    def __len__(self) -> int:
        return len(self.pp)

    def __iter__(self) -> Iterator[Layout]:
        return map(self.at, range(len(self)))

    def at(self, index: int) -> Layout:
        """One of them."""
        return Layout(
            int(self.pp[index]),
            int(self.dp[index]),
            int(self.kvp[index]),
            int(self.tpa[index]),
            int(self.tpf[index]),
            int(self.ep[index]),
            bool(self.hopb[index]),
        )

    def take(self, chosen: Integers | Booleans | slice) -> Layouts:
        """Those at some indices."""
        return Layouts(*(getattr(self, field.name)[chosen] for field in fields(self)))

    def column(self) -> Layouts:
        """As arrays [layouts, 1], to be combined with a row of batches."""
        return Layouts(*(getattr(self, field.name)[:, None] for field in fields(self)))

    @property
    def group(self) -> Integers:
        """Ranks of one attention group: KVP x TPA."""
        return self.kvp * self.tpa

    @property
    def stage(self) -> Integers:
        """Ranks of one pipeline stage."""
        return self.dp * self.group

    @property
    def ranks(self) -> Integers:
        """Devices of an instance."""
        return self.pp * self.stage

    def stage_share(self, blocks: int) -> Floats:
        """Share of the layers in the largest pipeline stage: stages have whole layers."""
        return np.ceil(blocks / self.pp) / blocks
