"""The findings for people."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from orchestrator.bench.handoff.run import Findings


def print_tables(console: Console, findings: Findings) -> None:
    """One table for layouts, one for what is hidden behind prefill, one for answers that move."""
    for title, rows in (
        ("Hand-off of a whole prompt at once", [row.row() for row in findings.moved]),
        ("Hand-off while the prompt is read", [row.row() for row in findings.hidden]),
        ("An answer that goes on elsewhere", [row.row() for row in findings.paused]),
    ):
        table = Table(title=title)
        for name in rows[0] if rows else ():
            table.add_column(name.replace("_", " "), justify="right")
        for row in rows:
            table.add_row(*(str(value) for value in row.values()))
        console.print(table)
