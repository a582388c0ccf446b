"""How many tokens to draft in the next step: what acceptance promises against what a step costs.

Drafting pays while the extra positions of a step cost less than the tokens they bring. That turns
with the batch: a small one leaves the arithmetic idle, a large one does not (SPEED-Bench: the
best draft length falls as the batch grows). So both sides are measured while serving:
acceptance per position, and the time of a step by batch size and draft length. The choice affects
speed only, never tokens. Pure: times are passed in.
"""

from __future__ import annotations

from collections.abc import Sequence

MOST_DRAFT_TOKENS = 7

# Weight of the newest observation; about the last twenty steps count.
_NEWEST = 0.1
# Until measured, positions are taken to be accepted this often, and a step with one more draft
# to cost this much more, so that drafting starts and is then judged by what it does.
_ASSUMED_ACCEPTANCE = 0.6
_ASSUMED_COST_OF_A_DRAFT = 0.3
# Every so many steps a neighbouring length is tried, so that an old verdict can be revised.
_PROBE_EVERY_STEPS = 32


class DraftLength:
    """Chooses between 0 and `most` draft tokens, or always gives `forced`."""

    def __init__(self, most: int, forced: int | None = None) -> None:
        self._most = most
        self._forced = forced
        self._acceptance = [_ASSUMED_ACCEPTANCE] * most
        self._step_s: dict[tuple[int, int], float] = {}
        self._steps = 0

    @property
    def most(self) -> int:
        """The longest draft that may be chosen."""
        return self._most if self._forced is None else self._forced

    def choose(self, batch: int) -> int:
        """Draft tokens for the next step of `batch` rows."""
        if self._forced is not None:
            return self._forced
        self._steps += 1
        best = max(
            range(self._most + 1), key=lambda k: self.expected_tokens(k) / self._cost(batch, k)
        )
        if self._steps % _PROBE_EVERY_STEPS == 0:
            shift = 1 if self._steps // _PROBE_EVERY_STEPS % 2 else -1
            return min(max(best + shift, 0), self._most)
        return best

    def expected_tokens(self, draft_tokens: int) -> float:
        """Acceptance length: 1 + sum over i of the product of the first i acceptances.

        SPEED-Bench, metrics section: AL = 1 + sum_i prod_{j<=i} AR_j, the free token included.
        """
        expected, survives = 1.0, 1.0
        for acceptance in self._acceptance[:draft_tokens]:
            survives *= acceptance
            expected += survives
        return expected

    def observe(
        self,
        batch: int,
        draft_tokens: int,
        step_s: float,
        drafted: Sequence[int],
        accepted: Sequence[int],
    ) -> None:
        """Take in one step.

        Args:
            batch: rows of the step.
            draft_tokens: the longest draft among them.
            step_s: how long drafting and verifying took.
            drafted: rows whose draft reached position i with all before it accepted.
            accepted: how many of those had position i accepted too.
        """
        for position, (tried, kept) in enumerate(zip(drafted, accepted, strict=True)):
            if tried:
                old = self._acceptance[position]
                self._acceptance[position] = old + _NEWEST * (kept / tried - old)
        key = (_bucket(batch), draft_tokens)
        before = self._step_s.get(key)
        self._step_s[key] = step_s if before is None else before + _NEWEST * (step_s - before)

    def _cost(self, batch: int, draft_tokens: int) -> float:
        """Seconds of a step, measured or extrapolated from the nearest measured length."""
        bucket = _bucket(batch)
        known = [k for k in range(self._most + 1) if (bucket, k) in self._step_s]
        if not known:
            return 1.0 + _ASSUMED_COST_OF_A_DRAFT * draft_tokens
        nearest = min(known, key=lambda k: (abs(k - draft_tokens), k))
        scale = (1.0 + _ASSUMED_COST_OF_A_DRAFT * draft_tokens) / (
            1.0 + _ASSUMED_COST_OF_A_DRAFT * nearest
        )
        return self._step_s[bucket, nearest] * scale


def _bucket(batch: int) -> int:
    """Batch sizes that cost about the same: powers of two."""
    return batch.bit_length()
