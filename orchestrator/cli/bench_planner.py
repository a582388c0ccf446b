"""`tandem bench planner`: how quickly plans are made, and what shortcuts cost."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from orchestrator.cli.bench_progress import progress
from orchestrator.cli.terminal import print_json


def planner(
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each measurement.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """The planner: points per second, seconds of a search, and what its shortcuts cost."""
    from orchestrator.bench.engine.tables import print_targets, wide_console
    from orchestrator.bench.machine import describe_machine
    from orchestrator.bench.planner.run import document, judge, run_planner_bench

    began_s = time.monotonic()
    with progress() as report:
        findings = run_planner_bench(rounds, report)
    targets = judge(findings)
    if as_json:
        machine = describe_machine({})
        print_json(document(findings, targets, machine, time.monotonic() - began_s))
        return
    print_targets(wide_console(), targets)
