"""`tandem bench placement`: how quickly the router's core decides."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli.bench_progress import progress
from orchestrator.cli.terminal import print_json


def placement(
    workers: Annotated[int, typer.Option(min=2, help="Workers, half of each role.")] = 512,
    blocks: Annotated[int, typer.Option(min=1, help="Blocks in the prefix index.")] = 1_000_000,
    isl: Annotated[int, typer.Option(min=1, help="Tokens of a prompt.")] = 512,
    decisions: Annotated[int, typer.Option(min=1, help="In each of five rounds.")] = 20_000,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """How quickly the router's core decides which workers take a request, without any I/O."""
    from dataclasses import asdict

    from orchestrator.bench.machine import describe_machine
    from orchestrator.bench.placement.load import Settings
    from orchestrator.bench.placement.run import run, targets
    from orchestrator.bench.targets import rows

    settings = Settings(workers, blocks, isl, decisions)
    with progress() as report:
        findings = run(settings, report)
    judged = targets(findings, full=workers >= 512 and blocks >= 1_000_000)
    if as_json:
        machine = describe_machine({})
        print_json({**asdict(findings), "targets": rows(judged), "machine": machine})
        return
    from orchestrator.bench.engine.tables import print_targets, wide_console

    console = wide_console()
    for name, value in asdict(findings).items():
        console.print(f"{name:>24}  {value}")
    print_targets(console, judged)
