"""`tandem simulate`: what a cluster would do with the requests of a trace, without running it."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.terminal import note, print_json
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.simulator.results import Results
    from orchestrator.simulator.simulation import Watch
    from router.core.policy import Policy


def simulate(
    trace: Annotated[Path, typer.Option(help="Requests: a Mooncake, Azure or BurstGPT trace.")],
    cluster: Annotated[
        Path, typer.Option(help="cluster.yaml, or plan.json from `tandem plan --json`.")
    ],
    form: Annotated[
        str, typer.Option("--format", help="auto, mooncake, azure or burstgpt.")
    ] = "auto",
    model: Annotated[
        str | None,
        typer.Option(help="Built-in model or folder with a config.json; that of --cluster."),
    ] = None,
    hardware: Annotated[
        str | None, typer.Option(help="h100, h200, b200 or gb200; that of a plan.")
    ] = None,
    precision: Annotated[str, typer.Option(help="As in `tandem plan`.")] = "auto",
    profile: Annotated[Path | None, typer.Option(help="What `tandem calibrate` measured.")] = None,
    requests_per_s: Annotated[
        float | None,
        typer.Option(min=1e-6, help="Poisson arrivals at this rate instead of the trace's."),
    ] = None,
    speedup: Annotated[
        float, typer.Option(min=1e-6, help="The trace's arrivals so many times as fast.")
    ] = 1.0,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many requests.")] = None,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
    scenario: Annotated[
        Path | None, typer.Option(help="Deaths, drains, flips and so on at given moments.")
    ] = None,
    gpus: Annotated[
        int | None,
        typer.Option(min=1, help="That workers can start on; more workers wait (Pending)."),
    ] = None,
    cold_start_s: Annotated[float, typer.Option(min=0.0, help="Of a worker.")] = 60.0,
    prefix_cache: Annotated[
        bool, typer.Option(help="Cache prefixes, where the trace names them.")
    ] = True,
    step_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most tokens of one engine step.")
    ] = None,
    acceptance: Annotated[
        float | None,
        typer.Option(min=1.0, help="Acceptance length at the decode.draft_tokens of a YAML file."),
    ] = None,
    queue_limit: Annotated[
        int, typer.Option(min=1, help="Requests that may wait in the router.")
    ] = 1024,
    patience: Annotated[
        float,
        typer.Option(min=0.0, help="Shed what would wait more than so many TTFT targets."),
    ] = 10.0,
    every_token: Annotated[
        bool,
        typer.Option("--every-token", help="Step by step, as a check of the closed forms; slow."),
    ] = False,
    event_log: Annotated[
        Path | None,
        typer.Option(help="Record what the core was told, for `python -m router.replay`."),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help="Autoscaling: tandem, ray-default, per-role, threshold, static-best or oracle."
        ),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a report with plots.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Run a trace through the router's own core on a simulated cluster."""
    from orchestrator.cli.simulate_policy import policy_named
    from orchestrator.simulator.building import Options, read_cluster
    from orchestrator.simulator.results import Results
    from orchestrator.simulator.scenario import read_scenario
    from orchestrator.simulator.simulation import Settings, Simulation
    from orchestrator.simulator.trace import FORMATS, at_rate, read_trace, sped_up
    from workers.perf.errors import PerfError

    known = {name: name for name in FORMATS}
    if form not in known:
        raise UsageError(f"--format {form}: must be one of {', '.join(FORMATS)}")
    if requests_per_s is not None and speedup != 1.0:
        raise UsageError("--requests-per-s and --speedup both say when requests come; give one")
    options = Options(
        gpus, cold_start_s, prefix_cache, step_tokens, acceptance, queue_limit, patience
    )
    try:
        one = read_cluster(cluster, model, hardware, precision, profile, options)
    except PerfError as error:
        raise UsageError(str(error)) from error
    requests = read_trace(trace, known[form], limit)
    if requests_per_s is not None:
        requests = at_rate(requests, requests_per_s, seed)
    elif speedup != 1.0:
        requests = sped_up(requests, speedup)
    if event_log is not None and prefix_cache and any(one.hash_ids for one in requests):
        raise UsageError(
            "--event-log: this trace names prefixes but has no tokens, from which a replay would "
            "make the names",
            "add --no-prefix-cache",
        )
    moments = [] if scenario is None else read_scenario(scenario)
    settings = Settings(seed=seed, every_token=every_token)
    counts = policy_named(policy, one, requests, cold_start_s)
    began_s = time.perf_counter()
    with _progress_bar(len(requests)) as advance, _recording(event_log, one.policy) as watch:
        outcome = Simulation(one, requests, moments, settings, counts, watch).run(advance)
    results = Results.of(one, outcome, len(requests), time.perf_counter() - began_s)
    if html is not None:
        _write_page(results, html, trace)
    if as_json:
        print_json(results.document())
    else:
        _print(results)


def _write_page(results: Results, path: Path, trace: Path) -> None:
    from orchestrator.simulator.page import page

    title = f"{trace.name} on {results.cluster.gpus_in_use} GPUs"
    try:
        path.write_text(page(results, title), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--html {path}: cannot be written: {error}") from error
    note(f"wrote {path}")


def _print(results: Results) -> None:
    from rich.console import Console
    from rich.table import Table

    from orchestrator.simulator.page import summary_lines
    from orchestrator.simulator.results import PERCENTILES

    console = Console(highlight=False)
    console.print(results.cluster.description, style="bold", markup=False)
    for text in summary_lines(results):
        console.print(f"- {text}", markup=False)
    table = Table("ms", *(f"p{share}" for share in PERCENTILES), "mean")
    for name, found in results.latencies.items():
        table.add_row(name.removesuffix("_ms"), *(f"{value:,.1f}" for value in found.values()))
    console.print(table)
    rate = results.requests / max(results.wall_s, 1e-9)
    console.print(
        f"simulated in {results.wall_s:.1f} s, {rate:,.0f} requests a second",
        style="dim",
        markup=False,
    )


@contextlib.contextmanager
def _recording(path: Path | None, policy: Policy) -> Iterator[Watch | None]:
    """Writes the core's events as a live router does with `event_log`."""
    if path is None:
        yield None
        return
    from router.core.event_log import event_line, header_line

    try:
        with path.open("w", encoding="utf-8") as file:
            file.write(header_line(policy, 1) + "\n")
            yield lambda *seen: file.write(event_line(*seen) + "\n")
    except OSError as error:
        raise UsageError(f"--event-log {path}: cannot be written: {error}") from error


@contextlib.contextmanager
def _progress_bar(total: int) -> Iterator[Callable[[int], object]]:
    """Requests that have ended, where standard error is a terminal."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("simulating", total=total)
        yield lambda done: bar.update(task, completed=done)
