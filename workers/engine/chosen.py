"""A token as an engine reports it; apart from the maths, so that engines without torch have it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(slots=True, init=False)
class Chosen:
    """One chosen token and, when asked for, its log-probability and the best alternatives'.

    `top` is ordered, most likely first, and has the chosen token where it is among them.
    """

    token_id: Final[int]
    logprob: Final[float | None]
    top: Final[tuple[tuple[int, float], ...]]

    # One for each token: its own is compiled, which makes it quicker than one that is generated.
    def __init__(
        self,
        token_id: int,
        logprob: float | None = None,
        top: tuple[tuple[int, float], ...] = (),
    ) -> None:
        self.token_id = token_id
        self.logprob = logprob
        self.top = top
