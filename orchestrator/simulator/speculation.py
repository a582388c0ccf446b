"""How many decode steps an answer takes when drafts are accepted at random.

Each step gives 1 + accepted drafts, where every draft is accepted with the same probability and
only if all before it were (as in `workers.perf.speculation`). The number of steps until n tokens
are there is a renewal count: mean n/m and variance n v/m^3 for gains of mean m and variance v
(central limit theorem of renewal theory; Feller, volume 2, XI.5), drawn from a normal.
"""

from __future__ import annotations

import functools
import math
import random

from workers.perf.speculation import acceptance_rate


class AnswerSteps:
    """Of one kind of worker."""

    def __init__(self, acceptance_length: float, draft_tokens: int) -> None:
        """Raises PerfError for an acceptance length that so many drafts cannot have."""
        self._mean = acceptance_length
        self._most = draft_tokens + 1
        rate = acceptance_rate(acceptance_length, draft_tokens) if draft_tokens else 0.0
        squares = sum((2 * drafts + 1) * rate**drafts for drafts in range(self._most))
        variance = max(squares - acceptance_length**2, 0.0)
        self._deviation = math.sqrt(variance / acceptance_length**3)

    def draw(self, tokens: int, rng: random.Random) -> int:
        """Steps that make `tokens` tokens; without drafts that many, and nothing is drawn."""
        if self._most == 1:
            return tokens
        drawn = rng.gauss(tokens / self._mean, self._deviation * math.sqrt(tokens))
        return min(max(round(drawn), -(-tokens // self._most)), tokens)


@functools.cache
def answer_steps(acceptance_length: float, draft_tokens: int) -> AnswerSteps:
    """Those of all workers of a kind. Raises PerfError as `AnswerSteps` does."""
    return AnswerSteps(acceptance_length, draft_tokens)
