"""Runs every policy on every case, one after the other, and keeps what came of each in a file.

A run takes seconds to a minute; a comparison that was stopped goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from orchestrator.autoscaler.comparison.cases import COLD_STARTS_S, FLOORS, Case
from orchestrator.autoscaler.comparison.runs import Figures, run
from orchestrator.autoscaler.comparison.search import WINDOW_S, best_oracle, static_best
from orchestrator.autoscaler.names import REACTIVE
from orchestrator.autoscaler.observation import ROLES
from orchestrator.autoscaler.oracle import Oracle, windows_of
from orchestrator.autoscaler.policy import TandemPolicy

_BEGIN_HEADROOM = 1.0

Say = Callable[[str], object]


class Runs:
    """Figures by case, cold start and policy, in one JSON file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: dict[str, dict[str, object]] = {}
        if path.exists():
            self._rows = json.loads(path.read_text(encoding="utf-8"))

    def has(self, key: str) -> bool:
        return key in self._rows

    def add(self, key: str, figures: Figures) -> None:
        """Keep one, and write the file."""
        self._rows[key] = figures.document()
        self._path.write_text(json.dumps(self._rows, indent=0), encoding="utf-8")

    def get(self, key: str) -> Figures | None:
        row = self._rows.get(key)
        return None if row is None else Figures.of(row)


def key_of(case: str, cold_start_s: float, policy: str) -> str:
    """Fixed counts never start anything: their cold start does not matter."""
    return f"{case}/{policy}" if policy == "static-best" else f"{case}/{cold_start_s:g}/{policy}"


def floor_name(floor: tuple[int, int]) -> str:
    """`tandem` with at least so many workers."""
    return f"tandem, at least {floor[0]} + {floor[1]}"


def compare(cases: Iterable[Case], traces: Path, runs: Runs, say: Say) -> None:
    """Run what the file does not have yet; a case whose trace is not there is left out."""
    for case in cases:
        try:
            requests = case.make(traces)
        except OSError as error:
            say(f"{case.name}: left out: {error}")
            continue
        cluster = case.cluster()
        for cold_start_s in COLD_STARTS_S:
            ground = case.ground(cluster, cold_start_s)
            say(f"{case.name}, cold start {cold_start_s:g} s, {len(requests)} requests")
            key = key_of(case.name, cold_start_s, "oracle")
            if not runs.has(key):
                figures = best_oracle(cluster, requests, ground, case.cached_share, say)[1]
                runs.add(key, figures)
            # All begin with what an oracle would have begun with.
            windows = windows_of(requests, ground, WINDOW_S, case.cached_share)
            begin = Oracle(ground, windows, _BEGIN_HEADROOM).counts(0.0)
            for name, make in REACTIVE.items():
                key = key_of(case.name, cold_start_s, name)
                if not runs.has(key):
                    figures = run(cluster, requests, make(ground), name, ground, begin)
                    say(f"{name}: {figures.attainment:.4f}, {figures.gpu_hours:.2f} GPU-hours")
                    runs.add(key, figures)
            for floor in FLOORS if case.jumps is not None else ():
                key = key_of(case.name, cold_start_s, floor_name(floor))
                if not runs.has(key):
                    held = replace(ground, least=dict(zip(ROLES, floor, strict=True)))
                    count = {role: max(begin[role], held.least[role]) for role in ROLES}
                    policy = TandemPolicy(held)
                    figures = run(cluster, requests, policy, floor_name(floor), held, count)
                    say(f"{floor_name(floor)}: {figures.attainment:.4f}")
                    runs.add(key, figures)
            key = key_of(case.name, cold_start_s, "static-best")
            if not runs.has(key):
                runs.add(key, static_best(cluster, requests, ground, case.cached_share, say)[1])
