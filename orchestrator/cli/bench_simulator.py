"""`tandem bench simulator`: how fast the simulator is, and how close to a live cluster."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.terminal import print_json

Progress = Callable[[], AbstractContextManager[Callable[[str], None]]]


def simulator_command(progress: Progress) -> Callable[..., None]:
    """The command; `progress` shows what is being measured."""

    def simulator(
        model: Annotated[
            Path | None, typer.Option(help="Checkpoint folder; the shipped model if not given.")
        ] = None,
        rounds: Annotated[int, typer.Option(min=1, help="Runs at each size.")] = 3,
        full: Annotated[
            bool, typer.Option("--full", help="Run the million requests, not a slope.")
        ] = False,
        live: Annotated[bool, typer.Option(help="Compare with a live cluster, a minute.")] = True,
        quick: Annotated[
            bool, typer.Option("--quick", help="Only show that everything runs; judge nothing.")
        ] = False,
        as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    ) -> None:
        """Simulated requests per second of one core, and latencies beside a live cluster's."""
        from orchestrator.bench.engine.tables import print_targets, wide_console
        from orchestrator.bench.machine import describe_machine
        from orchestrator.bench.simulator import settings as given
        from orchestrator.bench.simulator.goals import document, judge
        from orchestrator.bench.simulator.run import run_simulator_bench
        from orchestrator.spec import load_spec

        folder = Path(load_spec().model.path) if model is None else model
        settings = (
            given.quick(folder) if quick else given.Settings(model=folder, rounds=rounds, full=full)
        )
        if not live:
            settings = replace(settings, live_requests=0)
        began_s = time.monotonic()
        with progress() as report:
            findings = run_simulator_bench(settings, report)
        targets = judge(findings)
        if as_json:
            machine = describe_machine({})
            print_json(document(findings, targets, machine, time.monotonic() - began_s))
            return
        print_targets(wide_console(), targets)

    return simulator
