"""`tandem bench helix`: what a group of ranks costs, by layout."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.terminal import note, print_json

if TYPE_CHECKING:
    from orchestrator.bench.helix.run import Findings
    from orchestrator.bench.helix.settings import Settings
    from orchestrator.bench.targets import Target

_LAYOUTS = "kvp=2,ep=2;tpa=2,tpf=2;kvp=2,tpa=2,tpf=2,ep=2;kvp=4,ep=4"


def helix(
    model: Annotated[
        Path | None, typer.Option(help="Checkpoint folder; the shipped model if not given.")
    ] = None,
    layouts: Annotated[
        str, typer.Option(help="Layouts by their sizes, apart by semicolons.")
    ] = _LAYOUTS,
    batch: Annotated[int, typer.Option(min=1, help="Requests in a step.")] = 8,
    contexts: Annotated[str, typer.Option(help="Context lengths in tokens.")] = "128,1024,4096",
    draft_tokens: Annotated[str, typer.Option(help="MTP draft tokens, 0 to 7.")] = "0,3",
    steps: Annotated[int, typer.Option(min=1, help="Steps of each turn.")] = 10,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each group in each case.")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of each rank.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Step time, communication and KV memory of groups, beside one rank and without HOP-B."""
    from orchestrator.bench.helix.goals import judge
    from orchestrator.bench.helix.run import run_helix_bench
    from orchestrator.bench.helix.settings import (
        Settings,
        parse_draft_tokens,
        parse_layouts,
        parse_numbers,
    )
    from orchestrator.errors import UsageError
    from orchestrator.runtime.preflight import check_model
    from orchestrator.spec import load_spec
    from workers.parallel.rules import IllegalLayout

    settings = Settings(
        model=Path(load_spec().model.path) if model is None else model,
        layouts=parse_layouts(layouts),
        batch=batch,
        contexts=parse_numbers("--contexts", contexts, 1, 1 << 20),
        draft_tokens=parse_draft_tokens(draft_tokens),
        steps=steps,
        rounds=rounds,
        threads=threads,
    )
    check_model(str(settings.model))
    began_s = time.monotonic()
    try:
        findings = run_helix_bench(settings, note)
    except IllegalLayout as error:
        raise UsageError(f"--layouts: {error}") from error
    targets = judge(findings)
    if as_json:
        print_json(_document(settings, findings, targets, time.monotonic() - began_s))
        return
    from orchestrator.bench.engine.tables import print_targets, wide_console
    from orchestrator.bench.helix.tables import print_cases, print_memory

    console = wide_console()
    print_cases(console, settings, findings)
    print_memory(console, findings)
    print_targets(console, targets)


def _document(
    settings: Settings, findings: Findings, targets: list[Target], seconds: float
) -> dict[str, object]:
    from importlib.metadata import version

    from orchestrator.bench.helix.settings import name_of
    from orchestrator.bench.machine import describe_machine
    from orchestrator.bench.targets import rows

    given = {**asdict(settings), "model": str(settings.model)}
    return {
        "bench": "helix",
        "settings": {**given, "layouts": [name_of(each) for each in settings.layouts]},
        "seconds": round(seconds, 1),
        "cases": [asdict(case) for case in findings.cases],
        "memory": [asdict(memory) for memory in findings.memory],
        "targets": rows(targets),
        "machine": describe_machine({"torch": version("torch")}),
    }
