"""`tandem plan`: which layouts, how many workers of each kind, and what they will do."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.terminal import note, print_json
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.planner.asking import Wishes
    from orchestrator.planner.plan import Plan


def plan(
    model: Annotated[str, typer.Option(help="Built-in model, or a folder with a config.json.")],
    hardware: Annotated[
        str | None,
        typer.Option(help="h100, h200, b200 or gb200; h200 unless a --profile says."),
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, help="Devices at hand.")] = 8,
    isl: Annotated[int | None, typer.Option(min=1, help="Tokens of a prompt.")] = None,
    osl: Annotated[int | None, typer.Option(min=1, help="Tokens of an answer.")] = None,
    ttft_ms: Annotated[float, typer.Option(min=0.001, help="Target of TTFT.")] = 1000.0,
    itl_ms: Annotated[float, typer.Option(min=0.001, help="Target of mean ITL.")] = 30.0,
    requests_per_s: Annotated[
        float | None, typer.Option(min=0.0, help="Demand; as much as possible if not given.")
    ] = None,
    prefix_hit: Annotated[
        float, typer.Option(min=0.0, max=0.99, help="Share of a prompt that is cached.")
    ] = 0.0,
    acceptance: Annotated[
        float | None, typer.Option(min=1.0, help="Acceptance length with --draft-tokens.")
    ] = None,
    draft_tokens: Annotated[
        int, typer.Option(min=1, max=7, help="Longest draft; that of --acceptance.")
    ] = 3,
    trace: Annotated[
        Path | None, typer.Option(help="Lengths from a Mooncake, Azure or BurstGPT trace.")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="auto, fp4, nvfp4, nvfp4-all, mxfp4, fp8, bf16 or fp32.")
    ] = "auto",
    percentile: Annotated[
        float, typer.Option(min=50.0, max=99.99, help="Of requests that meet the TTFT target.")
    ] = 95.0,
    profile: Annotated[Path | None, typer.Option(help="What `tandem calibrate` measured.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Write a picture: a .png, .html or .svg file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Find layouts, batch sizes and worker counts for a model, a machine and latency targets."""
    from orchestrator.planner.asking import Wishes
    from orchestrator.planner.report import document

    _check_plot(plot)
    wishes = Wishes(
        model=model,
        hardware=hardware,
        devices=gpus,
        isl=isl,
        osl=osl,
        ttft_ms=ttft_ms,
        itl_ms=itl_ms,
        requests_per_s=requests_per_s or None,
        prefix_hit=prefix_hit,
        acceptance=acceptance,
        draft_tokens=draft_tokens,
        trace=trace,
        precision=precision,
        percentile=percentile,
        profile=profile,
    )
    answer, seconds = _answer(wishes)
    if plot is not None:
        _write_plot(answer, plot)
    if as_json:
        print_json(document(answer, seconds))
    else:
        _print(answer, seconds)
    if answer.obstacle is not None:
        raise typer.Exit(3)


def _answer(wishes: Wishes) -> tuple[Plan, float]:
    """The plan, and how long the search took."""
    from orchestrator.planner.asking import ask
    from orchestrator.planner.plan import make_plan
    from workers.perf.errors import PerfError

    try:
        question = ask(wishes)
    except PerfError as error:
        raise UsageError(str(error)) from error
    began_s = time.perf_counter()
    answer = make_plan(question)
    return answer, time.perf_counter() - began_s


def _check_plot(plot: Path | None) -> None:
    if plot is not None and plot.suffix not in (".html", ".png", ".svg"):
        raise UsageError(f"--plot {plot}: pictures are written as .html, .png or .svg")


def _write_plot(answer: Plan, path: Path) -> None:
    try:
        path.write_bytes(_picture(answer, path.suffix))
    except OSError as error:
        raise UsageError(f"--plot {path}: cannot be written: {error}") from error
    note(f"wrote {path}")


def _picture(answer: Plan, suffix: str) -> bytes:
    if suffix == ".png":
        from orchestrator.planner.png import png

        return png(answer)
    from orchestrator.planner.picture import drawing, page

    return (page(answer) if suffix == ".html" else drawing(answer)).encode()


def _print(answer: Plan, seconds: float) -> None:
    from rich.console import Console
    from rich.table import Table

    from orchestrator.planner.words import summary_lines

    question = answer.question
    console = Console(highlight=False)
    console.print(
        f"{question.model.name} ({question.model.parameters / 1e9:.1f} B, "
        f"{question.model.active_parameters / 1e9:.1f} B active) in {question.precision.name} on "
        f"{question.devices} {question.hardware.name}; {question.workload.description}; "
        f"TTFT {question.targets.ttft_s * 1e3:g} ms, ITL {question.targets.itl_s * 1e3:g} ms",
        style="bold",
        markup=False,
    )
    for line in summary_lines(answer):
        console.print(f"- {line}", markup=False)
    if answer.frontier:
        table = Table("tokens/s/user", "tokens/s/GPU", "ctx:gen", "prefill", "decode")
        for point in answer.frontier:
            table.add_row(
                f"{point.tokens_per_s_user:,.0f}",
                f"{point.tokens_per_s_gpu:,.0f}",
                f"{point.gpu_ratio:.2f}",
                point.prefill,
                point.decode,
            )
        console.print(table)
    console.print(f"{answer.points:,} candidates in {seconds:.2f} s", style="dim", markup=False)
