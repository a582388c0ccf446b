"""`tandem simulate`: what a cluster would do with the requests of a trace, without running it."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cli import simulate_flags as flags
from orchestrator.cli.terminal import note, print_json
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.autoscaler.observation import CountPolicy
    from orchestrator.simulator.cluster import Cluster
    from orchestrator.simulator.results import Results
    from orchestrator.simulator.scenario import Moment
    from orchestrator.simulator.simulation import Settings, Watch
    from orchestrator.simulator.trace import TraceRequest
    from router.core.policy import Policy


def simulate(
    trace: flags.Trace,
    cluster: flags.ClusterFile,
    form: flags.Form = "auto",
    model: flags.Model = None,
    hardware: flags.Hardware = None,
    precision: flags.Precision = "auto",
    profile: flags.ProfileFile = None,
    requests_per_s: flags.Rate = None,
    speedup: flags.Speedup = 1.0,
    limit: flags.Limit = None,
    seed: flags.Seed = 0,
    scenario: flags.ScenarioFile = None,
    gpus: flags.Gpus = None,
    cold_start_s: flags.ColdStart = 60.0,
    prefix_cache: flags.PrefixCache = True,
    step_tokens: flags.StepTokens = None,
    acceptance: flags.Acceptance = None,
    queue_limit: flags.QueueLimit = 1024,
    patience: flags.Patience = 10.0,
    every_token: flags.EveryToken = False,
    event_log: flags.EventLog = None,
    policy: flags.PolicyName = None,
    html: flags.Html = None,
    as_json: flags.AsJson = False,
) -> None:
    """Run a trace through the router's own core on a simulated cluster."""
    from orchestrator.cli.simulate_policy import policy_named
    from orchestrator.simulator.building import Options, read_cluster
    from orchestrator.simulator.scenario import read_scenario
    from orchestrator.simulator.simulation import Settings
    from workers.perf.errors import PerfError

    options = Options(
        gpus, cold_start_s, prefix_cache, step_tokens, acceptance, queue_limit, patience
    )
    try:
        one = read_cluster(cluster, model, hardware, precision, profile, options)
    except PerfError as error:
        raise UsageError(str(error)) from error
    requests = _requests(trace, form, limit, requests_per_s, speedup, seed)
    if event_log is not None and prefix_cache and any(one.hash_ids for one in requests):
        raise UsageError(
            "--event-log: this trace names prefixes but has no tokens, from which a replay would "
            "make the names",
            "add --no-prefix-cache",
        )
    moments = [] if scenario is None else read_scenario(scenario)
    counts = policy_named(policy, one, requests, cold_start_s)
    settings = Settings(seed=seed, every_token=every_token)
    results = _run(one, requests, moments, settings, counts, event_log)
    if html is not None:
        _write_page(results, html, trace)
    if as_json:
        print_json(results.document())
    else:
        _print(results)


def _requests(
    path: Path,
    form: str,
    limit: int | None,
    requests_per_s: float | None,
    speedup: float,
    seed: int,
) -> list[TraceRequest]:
    """Those of a trace, when they are to come."""
    from orchestrator.simulator.trace import FORMATS, at_rate, read_trace, sped_up

    known = {name: name for name in FORMATS}
    if form not in known:
        raise UsageError(f"--format {form}: must be one of {', '.join(FORMATS)}")
    if requests_per_s is not None and speedup != 1.0:
        raise UsageError("--requests-per-s and --speedup both say when requests come; give one")
    requests = read_trace(path, known[form], limit)
    if requests_per_s is not None:
        return at_rate(requests, requests_per_s, seed)
    return requests if speedup == 1.0 else sped_up(requests, speedup)


def _run(
    cluster: Cluster,
    requests: list[TraceRequest],
    moments: Sequence[Moment],
    settings: Settings,
    counts: CountPolicy | None,
    event_log: Path | None,
) -> Results:
    from orchestrator.simulator.results import Results
    from orchestrator.simulator.simulation import Simulation

    began_s = time.perf_counter()
    with _progress_bar(len(requests)) as advance, _recording(event_log, cluster.policy) as watch:
        outcome = Simulation(cluster, requests, moments, settings, counts, watch).run(advance)
    return Results.of(cluster, outcome, len(requests), time.perf_counter() - began_s)


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
