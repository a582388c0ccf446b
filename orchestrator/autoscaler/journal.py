"""Decisions of a running cluster on disk, where `tandem why` finds them: a line for each state.

A decision is written when it is made and again when it is acknowledged; the last line counts.
"""

from __future__ import annotations

import json
from pathlib import Path

from orchestrator.autoscaler.decisions import Decision

_NAME = "decisions.jsonl"


class Journal:
    """Appends to the file in a cluster's folder of logs."""

    def __init__(self, log_dir: Path) -> None:
        self._path = log_dir / _NAME

    def write(self, decision: Decision) -> None:
        """A decision as it stands."""
        row = {**decision.document(), "lines": decision.lines()}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def read_decisions(log_dir: Path) -> list[dict[str, object]]:
    """All of them in the order in which they were made, each as it was last written."""
    path = log_dir / _NAME
    if not path.exists():
        return []
    found: dict[str, dict[str, object]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found[str(row["decision_id"])] = row
    return list(found.values())
