"""How learning rate and draft depth move over a run: pure functions of the step.

Exists apart so that a resumed run continues exactly where it was, and so that a run can be cut
short: the rate is flat until the last part, so a smaller number of steps only starts the decay
earlier (warm-up, stable, decay).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Schedule:
    """Attributes: steps in all, peak rate, warm-up steps, decayed share of the run, draft depths.

    Deep draft recursions only pay once the first one is good, so they start at `deep_from`.
    """

    steps: int
    peak: float
    warmup_steps: int = 100
    decay_share: float = 0.4
    deep_from: float = 0.55
    depth: int = 3

    def scale(self, step: int) -> float:
        """Share of the peak rate at `step` (0-based), in (0, 1]."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        left = (self.steps - step) / (self.decay_share * self.steps)
        return warm * min(1.0, max(left, 0.01))

    def draft_depth(self, step: int) -> int:
        """Recursions of the MTP block trained at `step`."""
        return self.depth if step >= self.deep_from * self.steps else 1
