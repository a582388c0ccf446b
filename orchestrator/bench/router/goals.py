"""The targets of the router bench."""

from __future__ import annotations

from orchestrator.bench.router.run import Findings, Phase
from orchestrator.bench.router.settings import RouterBenchSettings
from orchestrator.bench.targets import Goal, Target, judged

# More than this share of the machine used by others, and figures say little of the router.
_OTHERS_CORES = 0.25
_MIB = 2**20


def judge(settings: RouterBenchSettings, found: Findings) -> list[Target]:
    """One row for each target of the router's shell."""
    best = max((found.saturation, found.long_answers), key=lambda phase: phase.tokens_per_core_s)
    loaded, low = found.loaded, found.low
    per_request = f"router CPU per request of {settings.output_tokens} tokens, 80 % of saturation"
    core = Goal("tokens relayed per router core", 50_000, "tokens/s", ">=")
    p50 = Goal("added latency p50, 80 % of saturation", 1.0, "ms", "<")
    p99 = Goal("added latency p99, 80 % of saturation", 5.0, "ms", "<")
    idle_wait = Goal("wait of a token below half load, p99", 0.0, "ms", "<=")
    return [
        _row(core, best.tokens_per_core_s, best),
        _row(Goal(per_request, 2.5, "ms", "<="), loaded.cpu_ms_per_request, loaded),
        _row(p50, loaded.added_ms[0], loaded),
        _row(p99, loaded.added_ms[2], loaded),
        _row(Goal("longest wait of a token, p99", 25.0, "ms", "<="), _hold_ms(found), best),
        _row(idle_wait, low.times_ms["hold_ms"][2] or 0.0, low),
        _row(Goal("added latency p50, low load", 1.0, "ms", "<"), low.added_ms[0], low),
        judged(
            Goal("growth over a million requests", 16.0, "MiB", "<="),
            found.memory.growth_per_million_bytes / _MIB,
            unfit=None
            if found.memory.requests_between >= 10_000
            else "too few requests to tell; run without --quick",
        ),
        judged(
            Goal("wrong or failed answers", 0.0, "answers", "<="),
            float(sum(phase.sample.failed + phase.sample.wrong for phase in _phases(found))),
        ),
    ]


def _row(goal: Goal, value: float | None, phase: Phase) -> Target:
    others = phase.others_cores
    unfit = None
    if others > _OTHERS_CORES:
        unfit = f"other processes used {others:.2f} cores meanwhile"
    return judged(goal, value, unfit=unfit)


def _hold_ms(found: Findings) -> float | None:
    waits = [phase.times_ms["hold_ms"][2] for phase in _phases(found)]
    known = [wait for wait in waits if wait is not None]
    return max(known) if known else 0.0


def _phases(found: Findings) -> list[Phase]:
    return [found.low, found.saturation, found.long_answers, found.loaded, found.latency]
