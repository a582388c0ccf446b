"""`tandem load compare`: two runs beside each other, or a run and a simulation of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.terminal import note, print_json
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.cli.load_words import Document

_FAILED = "failed"
# What is compared besides latencies: label and path in the report.
_RATES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("finished", ("finished",)),
    (_FAILED, ()),
    ("requests/s", ("requests_per_s",)),
    ("tokens/s", ("tokens_per_s",)),
    ("tokens/s for each GPU", ("tokens_per_s_gpu",)),
    ("goodput, requests/s", ("goodput_rps",)),
    ("met both targets, share", ("goodput_share",)),
    ("prompt tokens from cache, share", ("prefix_hit_share",)),
    ("acceptance length", ("acceptance", "length")),
)


def compare(
    first: Annotated[Path, typer.Argument(help="What `tandem load --json` printed.")],
    second: Annotated[Path, typer.Argument(help="Another, or of `tandem simulate --json`.")],
    html: Annotated[Path | None, typer.Option(help="Write a page with plots.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Compare two runs side by side."""
    from orchestrator.cli.load_words import shown

    documents = (_read(first), _read(second))
    figures = compared(*documents)
    head = ("", first.stem, second.stem, "ratio")
    rows = [
        (label, _figure(before), _figure(after), shown(ratio, 2))
        for label, before, after, ratio in figures
    ]
    if html is not None:
        from orchestrator.cli.load_page import comparison_page

        write_page(html, comparison_page((first.stem, second.stem), documents, head, rows))
    if as_json:
        print_json(
            {
                label: {"first": before, "second": after, "ratio": ratio}
                for label, before, after, ratio in figures
            }
        )
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*head)
    for row in rows:
        table.add_row(*row)
    Console(highlight=False).print(table)


Compared = tuple[str, float | None, float | None, float | None]


def compared(first: Document, second: Document) -> list[Compared]:
    """Label, both figures and the second over the first, where at least one has it."""
    from orchestrator.cli.load_words import LATENCIES, failed_requests, number

    paths: list[tuple[str, tuple[str, ...]]] = list(_RATES)
    for name, label in LATENCIES.items():
        paths += [(f"{label} {share}, ms", (name, share)) for share in ("p50", "p90", "p99")]
    rows: list[Compared] = []
    for label, path in paths:
        before, after = (
            failed_requests(one) if label == _FAILED else number(one, *path)
            for one in (first, second)
        )
        if before is None and after is None:
            continue
        rows.append(
            (label, before, after, after / before if before and after is not None else None)
        )
    return rows


def write_page(path: Path, text: str) -> None:
    """Raises UsageError when it cannot be written."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--html {path}: cannot be written: {error}") from error
    note(f"wrote {path}")


def _read(path: Path) -> Document:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error
    if not isinstance(found, dict) or "ttft_ms" not in found:
        raise UsageError(
            f"{path}: is no report of a load",
            "write one with `tandem load ... --json > run.json`",
        )
    return found


def _figure(value: float | None) -> str:
    from orchestrator.cli.load_words import shown

    if value is None or value.is_integer() or value >= 1000.0:
        return shown(value, 0)
    return shown(value, 3 if value < 10.0 else 1)
