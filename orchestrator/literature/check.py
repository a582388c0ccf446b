"""One figure of a paper beside ours."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Check:
    """A published figure, ours, and how far apart they may be.

    Attributes:
        what: the figure in words, with its unit.
        paper: as published.
        ours: as computed.
        tolerance: relative difference up to which they agree.
        why: where they do not agree, what explains it; required then.
        band: lowest and highest ratio of ours to the paper's that a test accepts where they do not
            agree, so that a change of the model shows.
    """

    what: str
    paper: float
    ours: float
    tolerance: float
    why: str = ""
    band: tuple[float, float] | None = None

    @property
    def ratio(self) -> float:
        """Ours over the paper's."""
        return self.ours / self.paper

    @property
    def agrees(self) -> bool:
        return abs(self.ratio - 1.0) <= self.tolerance

    @property
    def as_stated(self) -> bool:
        """Agrees, or differs as much as the check says and says why."""
        if self.agrees:
            return True
        if self.band is None or not self.why:
            return False
        return self.band[0] <= self.ratio <= self.band[1]


@dataclass(frozen=True, slots=True)
class Section:
    """Checks against one paper. `method` says what was computed, and what the paper leaves open."""

    title: str
    source: str
    method: str
    checks: tuple[Check, ...]
