"""A token as an engine reports it; apart from the maths, so that engines without torch have it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Chosen:
    """One chosen token and, when asked for, its log-probability and the best alternatives'.

    `top` is ordered, most likely first, and has the chosen token where it is among them.
    """

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
