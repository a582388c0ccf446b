"""The rows that every bench ends with: what was aimed at, what came out, and whether it is enough.

A row is never left out: what could not be measured or judged has `met` None and says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Sense = Literal[">=", "<", "<="]


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound on a figure, in the figure's unit."""

    name: str
    bound: float
    unit: str
    sense: Sense = ">="

    def __str__(self) -> str:
        return f"{self.sense} {self.bound:g}"

    def reached_by(self, value: float) -> bool:
        if self.sense == ">=":
            return value >= self.bound
        return value < self.bound if self.sense == "<" else value <= self.bound


@dataclass(frozen=True, slots=True)
class Target:
    """A goal and what came of it."""

    goal: Goal
    value: float | None
    met: bool | None
    why: str | None = None

    def row(self) -> dict[str, object]:
        """As every bench prints it."""
        value = None if self.value is None else round(self.value, 3)
        row: dict[str, object] = {
            "name": self.goal.name,
            "value": value,
            "unit": self.goal.unit,
            "goal": str(self.goal),
            "met": self.met,
        }
        return row if self.why is None else {**row, "why": self.why}


def judged(
    goal: Goal, value: float | None, *doubts: str | None, unfit: str | None = None
) -> Target:
    """Judge a value.

    Args:
        goal: what is aimed at.
        value: None when it was not measured; then a doubt says why.
        doubts: reasons not to call the goal reached, None for those that do not apply. A value
            that misses the goal misses it in spite of them.
        unfit: why a value, whatever it is, does not tell whether the goal is reached.
    """
    reasons = "; ".join(dict.fromkeys(doubt for doubt in doubts if doubt))
    if value is None:
        return Target(goal, None, None, reasons or "not measured")
    if unfit is not None:
        return Target(goal, value, None, "; ".join(filter(None, (reasons, unfit))))
    if reasons and goal.reached_by(value):
        return Target(goal, value, None, reasons)
    return Target(goal, value, goal.reached_by(value), reasons or None)


def better_peer(
    ratios: dict[str, float | None], reasons: dict[str, str]
) -> tuple[float | None, str | None]:
    """Our ratio to the better of our peers, and what is doubtful about it.

    Args:
        ratios: by peer, our speed over its speed; None when the peer was not measured.
        reasons: by peer that was not measured, why.
    """
    measured = {peer: value for peer, value in ratios.items() if value is not None}
    missing = [peer for peer in ratios if peer not in measured]
    doubt = "; ".join(f"{peer}: {reasons.get(peer, 'not measured')}" for peer in missing) or None
    return (min(measured.values()) if measured else None), doubt


def rows(targets: Sequence[Target]) -> list[dict[str, object]]:
    """All rows, in order."""
    return [target.row() for target in targets]
