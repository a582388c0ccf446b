"""`tandem load`: send requests to a running endpoint and report how it did."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from orchestrator.cli import load_flags as flags
from orchestrator.cli.failures import reported
from orchestrator.cli.load_compare import compare
from orchestrator.cli.load_speed_bench import speed_bench
from orchestrator.cli.terminal import print_json
from orchestrator.errors import UsageError, UserError

if TYPE_CHECKING:
    from orchestrator.cli.load_inputs import LoadFlags
    from orchestrator.cli.load_run import RunFlags

app = typer.Typer(name="load", help="Send requests to a running endpoint.")


def load(
    context: typer.Context,
    trace: flags.Trace = None,
    form: flags.Form = "auto",
    limit: flags.Limit = None,
    from_s: flags.FromS = 0.0,
    to_s: flags.ToS = None,
    min_isl: flags.MinIsl = 1,
    max_isl: flags.MaxIsl = None,
    min_osl: flags.MinOsl = 1,
    max_osl: flags.MaxOsl = None,
    isl: flags.Isl = "256",
    osl: flags.Osl = "64",
    turns: flags.Turns = 1,
    think_s: flags.ThinkS = 0.0,
    prompts: flags.Prompts = "text",
    model: flags.Model = None,
    temperature: flags.Temperature = 0.0,
    ignore_eos: flags.IgnoreEos = True,
    priority_class: flags.PriorityClass = "",
    arrivals: flags.Arrivals = "",
    requests_per_s: flags.Rate = None,
    to_rate: flags.ToRate = None,
    period_s: flags.PeriodS = None,
    burstiness: flags.Burstiness = 0.5,
    swing: flags.Swing = 0.8,
    speedup: flags.Speedup = 1.0,
    scale: flags.Scale = 1.0,
    users: flags.Users = None,
    seconds: flags.Seconds = None,
    seed: flags.Seed = 0,
    target: flags.Target = None,
    api: flags.Api = "completions",
    served_model: flags.ServedModel = "",
    api_key_file: flags.ApiKeyFile = None,
    ca: flags.Ca = None,
    timeout_s: flags.TimeoutS = 600.0,
    ttft_ms: flags.TtftMs = 500.0,
    itl_ms: flags.ItlMs = 40.0,
    gpus: flags.Gpus = None,
    html: flags.Html = None,
    as_json: flags.AsJson = False,
) -> None:
    """Send requests and report latencies, goodput and what the cluster looked like meanwhile."""
    if context.invoked_subcommand is not None:
        return
    from loadgen.errors import LoadError
    from loadgen.figures import Targets
    from loadgen.traces.shaping import Cut
    from orchestrator.cli.load_inputs import ArrivalFlags, LoadFlags, TraceFlags
    from orchestrator.cli.load_run import RunFlags
    from orchestrator.cli.load_target import TargetFlags
    from orchestrator.cli.load_unused import given_flags

    bounds = Cut(from_s, to_s, min_isl, max_isl, min_osl, max_osl)
    asked = LoadFlags(
        None if trace is None else TraceFlags(trace, form, speedup, scale, bounds),
        ArrivalFlags(arrivals, requests_per_s, to_rate, period_s, burstiness, swing),
        isl, osl, turns, think_s, users, seconds, limit, priority_class, seed, given_flags(context),
    )  # fmt: skip
    given = RunFlags(
        TargetFlags(target, api, served_model, api_key_file, ca, timeout_s),
        Targets(ttft_ms, itl_ms),
        model, prompts, temperature, ignore_eos, gpus,
    )  # fmt: skip
    try:
        _run(asked, given, html, as_json)
    except LoadError as error:
        raise UsageError(error.message, error.hint) from error


def _run(asked: LoadFlags, given: RunFlags, html: Path | None, as_json: bool) -> None:
    from orchestrator.cli.load_run import run_load
    from orchestrator.cli.load_terminal import live, print_report

    if html is not None and (html.is_dir() or not html.parent.is_dir()):
        raise UsageError(f"--html {html}: must be a file in a folder that is there")
    with live() as seen:
        document = run_load(asked, given, seen)
    # First what cannot fail: a page that cannot be written must not cost the figures of an hour.
    if as_json:
        print_json(document)
    else:
        print_report(document)
    if html is not None:
        from orchestrator.cli.load_compare import write_page
        from orchestrator.cli.load_page import page

        what = "load" if asked.trace is None else asked.trace.path.name
        write_page(html, page(document, f"{what} on {given.target.target or 'this machine'}"))
    if not document["finished"] and document["failed"]:
        raise UserError("no request ended well", "see the failures above")


app.callback(invoke_without_command=True)(reported(load))
app.command("compare")(reported(compare))
app.command("speed-bench")(reported(speed_bench))
