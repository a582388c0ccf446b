"""`tandem bench handoff`: moving state between layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.bench_progress import progress
from orchestrator.cli.terminal import print_json
from orchestrator.errors import UserError


def handoff(
    model: Annotated[
        Path | None, typer.Option(help="Checkpoint folder; the shipped model if not given.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Hand-offs of each kind.")] = 7,
    only: Annotated[
        str, typer.Option(help="Of layouts, overlap and migration, with commas; all if not given.")
    ] = "",
    quick: Annotated[
        bool, typer.Option("--quick", help="Only show that everything runs; judge nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Moving the state of requests between layouts, beside a plain NIXL write of as many bytes, and
    how long an answer pauses that moves."""
    from importlib.metadata import version

    from orchestrator.bench.handoff.run import PARTS, judge, run_handoff_bench
    from orchestrator.bench.machine import describe_machine
    from orchestrator.spec import ModelSpec

    folder = Path(ModelSpec().path) if model is None else model
    parts = only.split(",") if only else list(PARTS)
    if unknown := [part for part in parts if part not in PARTS]:
        raise UserError(f"--only {only}: {unknown[0]!r} is no part", f"name {', '.join(PARTS)}")
    with progress() as report:
        findings = run_handoff_bench(
            folder, 1 if quick else rounds, report, quick=quick, only=parts
        )
    targets = judge(findings, quick=quick)
    machine = describe_machine({name: version(name) for name in ("nixl", "torch")})
    if as_json:
        print_json(findings.document(targets, machine))
        return
    from orchestrator.bench.engine.tables import print_targets, wide_console
    from orchestrator.bench.handoff.tables import print_tables

    console = wide_console()
    print_tables(console, findings)
    print_targets(console, targets)
