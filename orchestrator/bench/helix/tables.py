"""The findings for a person."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from orchestrator.bench.helix.run import Findings
from orchestrator.bench.helix.settings import Settings


def print_cases(console: Console, settings: Settings, findings: Findings) -> None:
    """Step time and communication of every case."""
    table = Table(title=f"decode steps of {settings.batch} requests, float32")
    for name in (
        "layout",
        "context",
        "drafts",
        "step ms",
        "over 1 rank",
        "exposed a2a ms",
        "other ms",
        "without HOP-B: step ms",
        "exposed a2a ms",
        "a2a bytes",
        "formula",
        "other bytes",
    ):
        table.add_column(name, justify="left" if name == "layout" else "right")
    for case in findings.cases:
        table.add_row(
            case.layout,
            str(case.context_tokens),
            str(case.draft_tokens),
            f"{case.step_ms:.2f}",
            _figure(case.step_ratio),
            f"{case.exposed_exchange_ms:.2f}",
            f"{case.exposed_other_ms:.2f}",
            _figure(case.no_overlap_step_ms),
            _figure(case.no_overlap_exposed_exchange_ms),
            " ".join(map(str, case.exchange_bytes)),
            str(case.formula_bytes),
            str(case.other_bytes),
        )
    console.print(table)


def print_memory(console: Console, findings: Findings) -> None:
    """KV of the fullest rank."""
    table = Table(title="KV of the fullest rank")
    for name in ("layout", "prompt tokens", "tokens stored", "total / KVP", "KV bytes in all"):
        table.add_column(name, justify="left" if name == "layout" else "right")
    for memory in findings.memory:
        table.add_row(
            memory.layout,
            str(memory.prompt_tokens),
            str(memory.stored_tokens),
            f"{memory.prompt_tokens / memory.kvp:g}",
            str(memory.kv_bytes),
        )
    console.print(table)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
