"""Questions of SPEED-Bench as conversations: every turn carries the answers before it."""

from __future__ import annotations

from collections.abc import Sequence

from loadgen.sessions import Session, Turn
from loadgen.speedbench.rows import Question


def sessions_of(questions: Sequence[Question], answer_tokens: int) -> list[Session]:
    """Numbered as the questions are."""
    return [
        Session(number, 0.0, tuple(Turn(0, answer_tokens, text=turn) for turn in question.turns))
        for number, question in enumerate(questions)
    ]
