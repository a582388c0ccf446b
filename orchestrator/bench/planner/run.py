"""Times the planner on one core: searches, re-solves, a cold start; compares with exhaustion."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from orchestrator.bench.targets import Goal, Target, judged, rows
from orchestrator.planner.asking import Wishes, ask
from orchestrator.planner.matching import Pool, counts_for_demand
from orchestrator.planner.pareto import frontier_by_size
from orchestrator.planner.phases import decode_points, prefill_points
from orchestrator.planner.plan import make_plan
from orchestrator.planner.question import Question
from orchestrator.planner.solve import best_for_devices, exhaustive

_LEAST_POINTS = 100_000
# Few GPUs, where rounding to whole instances costs most.
_SMALL = (
    ("nemotron-3-super", "h200", 16),
    ("nemotron-3-super", "b200", 12),
    ("llama-3.1-70b", "h100", 24),
    ("gpt-oss-120b", "h200", 8),
    ("llama-3.1-8b", "h100", 7),
)
_COLD = (
    "plan --model nemotron-3-super --hardware gb200 --gpus 64 --isl 8192 --osl 1024 "
    "--acceptance 2.5 --json"
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Requests a second by our search and by the exhaustive one."""

    model: str
    hardware: str
    gpus: int
    ours_rps: float
    exhaustive_rps: float
    points: int

    @property
    def shortfall(self) -> float:
        """What ours lacks, relative."""
        return 1.0 - self.ours_rps / self.exhaustive_rps


@dataclass(frozen=True, slots=True)
class Findings:
    """Medians over rounds; seconds of one core."""

    points: int
    search_s: float
    plan_s: float
    resolve_s: float
    cold_start_s: float | None
    comparisons: tuple[Comparison, ...]


def run_planner_bench(rounds: int, report: Callable[[str], None]) -> Findings:
    """Measure everything; under a minute."""
    report("searching for Nemotron 3 Super on 64 GB200")
    question = _question("nemotron-3-super", "gb200", 64, acceptance=2.5)
    points = 0

    def search() -> None:
        nonlocal points
        phase = question.phase
        prefill, prefill_room = prefill_points(
            phase, question.workload, question.devices, drafts=question.drafts
        )
        decode, decode_room = decode_points(
            phase, question.workload, question.devices, question.drafting
        )
        points = prefill_room.fitting + decode_room.fitting
        best_for_devices(
            prefill.take(frontier_by_size(prefill.read_s, prefill.rate, prefill.ranks)),
            decode,
            question.workload,
            question.devices,
            question.targets,
        )

    search_s = _median_s(search, rounds)
    report("whole plans, with frontiers and the colocated alternative")
    plan_s = _median_s(lambda: make_plan(question), rounds)
    report("re-solving counts for a demand")
    prefill, decode = Pool(2.1, 1, 8, 3.6, 0.4, 0.35), Pool(108.0, 4, 2436, 22.0, 1.5)
    resolve_s = _median_s(
        lambda: counts_for_demand(700.0, prefill, decode, ttft_s=1.0), max(rounds, 20)
    )
    report("comparing with exhaustive searches")
    comparisons = tuple(_compare(*case) for case in _SMALL)
    report("starting cold")
    cold_s = _median_s(_start_cold, min(rounds, 3))
    return Findings(points, search_s, plan_s, resolve_s, cold_s, comparisons)


def judge(findings: Findings) -> list[Target]:
    """A row for each goal of the planner."""
    enough = findings.points >= _LEAST_POINTS
    few = f"only {findings.points} points were searched"
    worst = max(one.shortfall for one in findings.comparisons) * 100.0
    per_s = findings.points / findings.search_s
    return [
        judged(Goal("design points", _LEAST_POINTS, "points"), float(findings.points)),
        judged(Goal("design points per second", 100_000.0, "points/s"), per_s),
        judged(
            Goal("full search of at least 100,000 points", 1.0, "s", "<"),
            findings.search_s,
            unfit=None if enough else few,
        ),
        judged(Goal("whole plan in a warm process", 2.0, "s", "<"), findings.plan_s),
        judged(Goal("re-solve of the rate match", 5.0, "ms", "<"), findings.resolve_s * 1e3),
        judged(Goal("shortfall against exhaustive search", 1.0, "%", "<"), worst),
        judged(
            Goal("cold start of tandem plan, Nemotron 3 Super on 64 GB200", 2.0, "s", "<"),
            findings.cold_start_s,
        ),
    ]


def document(
    findings: Findings, targets: list[Target], machine: dict[str, object], seconds: float
) -> dict[str, object]:
    """What `--json` prints."""
    return {
        "bench": "planner",
        "seconds": round(seconds, 1),
        "points": findings.points,
        "points_per_s": findings.points / findings.search_s,
        "search_s": findings.search_s,
        "plan_s": findings.plan_s,
        "resolve_ms": findings.resolve_s * 1e3,
        "cold_start_s": findings.cold_start_s,
        "against_exhaustive": [
            {**asdict(one), "shortfall": one.shortfall} for one in findings.comparisons
        ],
        "targets": rows(targets),
        "machine": machine,
    }


def _question(model: str, hardware: str, gpus: int, acceptance: float | None = None) -> Question:
    return ask(
        Wishes(
            model=model,
            hardware=hardware,
            devices=gpus,
            isl=8192,
            osl=1024,
            ttft_ms=1000.0,
            itl_ms=30.0,
            acceptance=acceptance,
        )
    )


def _compare(model: str, hardware: str, gpus: int) -> Comparison:
    question = _question(model, hardware, gpus)
    phase, workload, targets = question.phase, question.workload, question.targets
    prefill, _ = prefill_points(phase, workload, gpus)
    decode, room = decode_points(phase, workload, gpus, question.drafting)
    kept = prefill.take(frontier_by_size(prefill.read_s, prefill.rate, prefill.ranks))
    ours = best_for_devices(kept, decode, workload, gpus, targets)
    best = exhaustive(prefill, decode, workload, gpus, targets)
    if best is None:
        raise RuntimeError(f"{model} on {gpus} {hardware}: nothing meets the targets of the bench")
    found = 0.0 if ours is None else ours.sustained_rps
    return Comparison(model, hardware, gpus, found, best.sustained_rps, room.fitting)


def _start_cold() -> None:
    subprocess.run(  # noqa: S603 our own command in our own interpreter
        [sys.executable, "-m", "orchestrator.cli.main", *_COLD.split()],
        check=True,
        stdout=subprocess.DEVNULL,
    )


def _median_s(work: Callable[[], object], rounds: int) -> float:
    work()
    times = []
    for _ in range(rounds):
        began_s = time.perf_counter()
        work()
        times.append(time.perf_counter() - began_s)
    return statistics.median(times)
