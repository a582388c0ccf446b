"""The targets of the router bench."""

from __future__ import annotations

from orchestrator.bench.router.run import Findings, Phase
from orchestrator.bench.router.settings import RouterBenchSettings
from orchestrator.bench.targets import Goal, Target, judged

# More than this share of the machine used by others, and figures say little of the router.
_OTHERS_CORES = 0.25
_MIB = 2**20
_NO_GOAL = "reported: no goal is set for it"


def judge(settings: RouterBenchSettings, found: Findings) -> list[Target]:
    """One row for each target of the router's shell, and for what is to be reported with them."""
    full, long, loaded, low = found.saturation, found.long_answers, found.loaded, found.low
    tokens = settings.output_tokens
    p50 = Goal("added latency p50, 80 % of saturation", 1.0, "ms", "<")
    p99 = Goal("added latency p99, 80 % of saturation", 5.0, "ms", "<")
    latency = f"at {found.latency.offered_rps:.0f} requests/s"
    return [
        _row(_relayed(tokens), full.tokens_per_core_s, full),
        _row(_relayed(4 * tokens), long.tokens_per_core_s, long),
        _reported(
            f"requests per router core at saturation, answers of {tokens}",
            full.requests_per_core_s,
            "/s",
        ),
        _row(
            Goal(f"router CPU per request of {tokens} tokens, 80 % of saturation", 2.5, "ms", "<="),
            loaded.cpu_ms_per_request,
            loaded,
        ),
        _row(p50, loaded.added_ms[0], loaded),
        _row(p99, loaded.added_ms[2], loaded),
        *(
            _reported(f"added latency {name} {latency}", value, "ms")
            for name, value in zip(("p50", "p95", "p99"), found.latency.added_ms, strict=True)
        ),
        _row(Goal("added latency p50, low load", 1, "ms", "<"), low.added_ms[0], low),
        _row(Goal("longest wait of a token", 25, "ms", "<="), _longest_ms(found), _busiest(found)),
        _row(Goal("longest wait of a token, low load", 0, "ms", "<="), low.longest_hold_ms, low),
        _reported("memory of 10,000 open requests", found.memory.per_10k_open_bytes / _MIB, "MiB"),
        _growth(found),
        judged(
            Goal("wrong or failed answers", 0.0, "answers", "<="),
            float(sum(phase.sample.failed + phase.sample.wrong for phase in _phases(found))),
        ),
    ]


def _relayed(tokens: int) -> Goal:
    return Goal(
        f"tokens relayed per router core at saturation, answers of {tokens}", 50_000, "tokens/s"
    )


def _growth(found: Findings) -> Target:
    memory = found.memory
    doubt = None
    if memory.requests < 1_000_000:
        doubt = (
            f"extrapolated from {memory.requests_between} requests; --memory-requests 1000000 "
            "measures it"
        )
    return judged(
        Goal("growth over a million requests", 16.0, "MiB", "<="),
        memory.growth_per_million_bytes / _MIB,
        doubt,
        unfit=None if memory.requests_between >= 10_000 else "too few requests to tell",
    )


def _reported(name: str, value: float | None, unit: str) -> Target:
    return Target(Goal(name, 0.0, unit), value, None, _NO_GOAL)


def _row(goal: Goal, value: float | None, phase: Phase) -> Target:
    others = phase.others_cores
    unfit = None
    if others > _OTHERS_CORES:
        unfit = f"other processes used {others:.2f} cores meanwhile"
    return judged(goal, value, unfit=unfit)


def _longest_ms(found: Findings) -> float:
    return max(phase.longest_hold_ms for phase in _phases(found))


def _busiest(found: Findings) -> Phase:
    return max(_phases(found), key=lambda phase: phase.others_cores)


def _phases(found: Findings) -> list[Phase]:
    return [found.low, found.saturation, found.long_answers, found.loaded, found.latency]
