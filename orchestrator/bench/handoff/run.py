"""Runs the bench of hand-offs and judges it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from orchestrator.bench.handoff.bandwidth import Moved, measure_pair
from orchestrator.bench.handoff.migration import Paused, measure_migration
from orchestrator.bench.handoff.overlap import Hidden, measure_overlap
from orchestrator.bench.handoff.shapes import JUDGED_TOKENS, LENGTHS, PAIRS, QUICK_LENGTHS
from orchestrator.bench.targets import Goal, Target, judged, rows

CHUNKS = (1, 4, 8, 16)
QUICK_CHUNKS = (2,)
_JUDGED_CHUNKS = 4
PARTS = ("layouts", "overlap", "migration")
_MIGRATED_TOKENS = (512, 4096)
_QUICK_MIGRATED_TOKENS = (64,)
_QUICK = "--quick measures only that everything runs"


@dataclass(frozen=True, slots=True)
class Findings:
    """What was measured."""

    moved: list[Moved]
    hidden: list[Hidden]
    paused: list[Paused]

    def document(self, targets: list[Target], machine: dict[str, object]) -> dict[str, object]:
        """As `--json` prints it."""
        return {
            "layouts": [row.row() for row in self.moved],
            "overlap": [row.row() for row in self.hidden],
            "migration": [row.row() for row in self.paused],
            "targets": rows(targets),
            "machine": machine,
        }


def run_handoff_bench(
    model: Path,
    rounds: int,
    report: Callable[[str], None],
    *,
    quick: bool,
    only: Collection[str] = PARTS,
) -> Findings:
    """Measure every pair of layouts, then two engines, then an answer that moves between two."""
    moved: list[Moved] = []
    for pair in PAIRS if "layouts" in only else ():
        report(f"hand-off {pair.name}")
        moved += measure_pair(pair, QUICK_LENGTHS if quick else LENGTHS, rounds)
    hidden: list[Hidden] = []
    if "overlap" in only:
        report("two engines: hand-off behind prefill")
        hidden = measure_overlap(model, QUICK_CHUNKS if quick else CHUNKS, rounds)
    paused: list[Paused] = []
    if "migration" in only:
        report("two decode workers: an answer that moves")
        lengths = _QUICK_MIGRATED_TOKENS if quick else _MIGRATED_TOKENS
        paused = measure_migration(model, lengths, rounds)
    return Findings(moved, hidden, paused)


def judge(findings: Findings, *, quick: bool) -> list[Target]:
    """One target for equal layouts, one across layouts, one for what is hidden; pauses besides."""
    equal = {pair.name for pair in PAIRS if pair.equal}
    judged_rows = [row for row in findings.moved if row.tokens >= JUDGED_TOKENS]
    goals = (
        (
            Goal("bandwidth over raw NIXL, equal layouts, 8k tokens and more", 0.8, "x"),
            [row.ratio_to_raw for row in judged_rows if row.pair in equal],
        ),
        (
            Goal("bandwidth over raw NIXL, across layouts, 8k tokens and more", 0.5, "x"),
            [row.ratio_to_raw for row in judged_rows if row.pair not in equal],
        ),
        (
            Goal("transfer time hidden behind prefill, 4 chunks and more", 0.8, "share"),
            [row.share_hidden for row in findings.hidden if row.chunks >= _JUDGED_CHUNKS],
        ),
    )
    unfit = _QUICK if quick else None
    return [
        *(judged(goal, min(values, default=None), unfit, unfit=unfit) for goal, values in goals),
        *(
            Target(
                Goal(f"pause of an answer that moves, prompt of {row.tokens}", 0.0, "ms"),
                row.pause_ms,
                None,
                "reported: no goal is set for it",
            )
            for row in findings.paused
        ),
    ]
