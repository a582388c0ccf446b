"""Questions that these tests share."""

from __future__ import annotations

from orchestrator.planner.asking import Wishes, ask
from orchestrator.planner.question import Question


def question(
    model: str = "nemotron-3-super",
    hardware: str = "h200",
    gpus: int = 16,
    *,
    isl: int = 8192,
    osl: int = 1024,
    ttft_ms: float = 1000.0,
    itl_ms: float = 30.0,
    requests_per_s: float | None = None,
    prefix_hit: float = 0.0,
    acceptance: float | None = None,
) -> Question:
    """A question with everything but what the test is about."""
    return ask(
        Wishes(
            model=model,
            hardware=hardware,
            devices=gpus,
            isl=isl,
            osl=osl,
            ttft_ms=ttft_ms,
            itl_ms=itl_ms,
            requests_per_s=requests_per_s,
            prefix_hit=prefix_hit,
            acceptance=acceptance,
        )
    )
