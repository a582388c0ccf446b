"""`tandem load`: send requests to a running endpoint and report how it did."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.failures import reported
from orchestrator.cli.load_compare import compare
from orchestrator.cli.load_speed_bench import speed_bench
from orchestrator.cli.terminal import print_json
from orchestrator.errors import UsageError, UserError

if TYPE_CHECKING:
    from orchestrator.cli.load_inputs import LoadFlags
    from orchestrator.cli.load_run import RunFlags

_REQUESTS, _MOMENTS, _TARGET, _REPORT = "Requests", "When they come", "Target", "Report"

app = typer.Typer(name="load", help="Send requests to a running endpoint.")


def load(
    context: typer.Context,
    trace: Annotated[
        Path | None,
        typer.Option(
            help="A Mooncake, Azure, BurstGPT or AIBrix trace.", rich_help_panel=_REQUESTS
        ),
    ] = None,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="auto, mooncake, azure, burstgpt or aibrix.",
            rich_help_panel=_REQUESTS,
        ),
    ] = "auto",
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Only so many requests.", rich_help_panel=_REQUESTS),
    ] = None,
    from_s: Annotated[
        float,
        typer.Option(min=0.0, help="Leave out the trace before.", rich_help_panel=_REQUESTS),
    ] = 0.0,
    to_s: Annotated[
        float | None,
        typer.Option(min=0.0, help="Leave out the trace after.", rich_help_panel=_REQUESTS),
    ] = None,
    min_isl: Annotated[
        int, typer.Option(min=1, help="Leave out shorter prompts.", rich_help_panel=_REQUESTS)
    ] = 1,
    max_isl: Annotated[
        int | None,
        typer.Option(min=1, help="Leave out longer prompts.", rich_help_panel=_REQUESTS),
    ] = None,
    min_osl: Annotated[
        int, typer.Option(min=1, help="Leave out shorter answers.", rich_help_panel=_REQUESTS)
    ] = 1,
    max_osl: Annotated[
        int | None,
        typer.Option(min=1, help="Leave out longer answers.", rich_help_panel=_REQUESTS),
    ] = None,
    isl: Annotated[
        str,
        typer.Option(
            help="Without a trace: tokens of a prompt, 512 or 100-900.", rich_help_panel=_REQUESTS
        ),
    ] = "256",
    osl: Annotated[
        str,
        typer.Option(help="Tokens of an answer, where no trace says.", rich_help_panel=_REQUESTS),
    ] = "64",
    turns: Annotated[
        int,
        typer.Option(
            min=1,
            help="Without a trace: turns of a conversation, each with the answers before it.",
            rich_help_panel=_REQUESTS,
        ),
    ] = 1,
    think_s: Annotated[
        float,
        typer.Option(
            min=0.0, help="Between an answer and what a user says next.", rich_help_panel=_REQUESTS
        ),
    ] = 0.0,
    prompts: Annotated[
        str,
        typer.Option(
            help="text, or random tokens, which flatter speculation.", rich_help_panel=_REQUESTS
        ),
    ] = "text",
    model: Annotated[
        Path | None,
        typer.Option(
            help="Checkpoint folder whose tokenizer counts; the shipped model's if not given.",
            rich_help_panel=_REQUESTS,
        ),
    ] = None,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="0 is greedy.", rich_help_panel=_REQUESTS)
    ] = 0.0,
    ignore_eos: Annotated[
        bool,
        typer.Option(
            help="Answers of the wanted length, where the target can.", rich_help_panel=_REQUESTS
        ),
    ] = True,
    priority_class: Annotated[
        str, typer.Option(help="Class of requests that name none.", rich_help_panel=_REQUESTS)
    ] = "",
    arrivals: Annotated[
        str,
        typer.Option(
            help="replay, poisson, gamma, constant, ramp, step or diurnal; replay of a trace, "
            "poisson with a rate.",
            rich_help_panel=_MOMENTS,
        ),
    ] = "",
    requests_per_s: Annotated[
        float | None,
        typer.Option(
            "--requests-per-s",
            "--rate",
            min=1e-6,
            help="Requests, or conversations, a second.",
            rich_help_panel=_MOMENTS,
        ),
    ] = None,
    to_rate: Annotated[
        float | None,
        typer.Option(min=1e-6, help="Of a ramp or a step: its end.", rich_help_panel=_MOMENTS),
    ] = None,
    period_s: Annotated[
        float | None,
        typer.Option(
            min=1e-3,
            help="What a ramp takes, what comes before a step, or a day of diurnal.",
            rich_help_panel=_MOMENTS,
        ),
    ] = None,
    burstiness: Annotated[
        float,
        typer.Option(
            min=1e-3,
            help="Shape of gamma gaps: 1 is Poisson, less is bursty.",
            rich_help_panel=_MOMENTS,
        ),
    ] = 0.5,
    swing: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Of diurnal, up and down from its mean.",
            rich_help_panel=_MOMENTS,
        ),
    ] = 0.8,
    speedup: Annotated[
        float,
        typer.Option(
            min=1e-6, help="The trace's arrivals so many times as fast.", rich_help_panel=_MOMENTS
        ),
    ] = 1.0,
    scale: Annotated[
        float,
        typer.Option(
            min=1e-6, help="The trace's requests so many times.", rich_help_panel=_MOMENTS
        ),
    ] = 1.0,
    users: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Closed loop: so many, one request at a time each.",
            rich_help_panel=_MOMENTS,
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(min=0.1, help="Send no longer than this.", rich_help_panel=_MOMENTS),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of what is drawn.", rich_help_panel=_MOMENTS)] = 0,
    target: Annotated[
        str | None,
        typer.Option(
            help="grpc://HOST:PORT, or http://HOST:PORT of any OpenAI endpoint; the cluster that "
            "runs here if not given.",
            rich_help_panel=_TARGET,
        ),
    ] = None,
    api: Annotated[
        str, typer.Option(help="Over HTTP: completions or chat.", rich_help_panel=_TARGET)
    ] = "completions",
    served_model: Annotated[
        str,
        typer.Option(help="Its name at the target, if several are.", rich_help_panel=_TARGET),
    ] = "",
    api_key_file: Annotated[
        Path | None, typer.Option(help="File with the API key.", rich_help_panel=_TARGET)
    ] = None,
    ca: Annotated[
        Path | None,
        typer.Option(help="Certificates to trust, PEM.", rich_help_panel=_TARGET),
    ] = None,
    timeout_s: Annotated[
        float,
        typer.Option(min=0.1, help="A longer answer has failed.", rich_help_panel=_TARGET),
    ] = 600.0,
    ttft_ms: Annotated[
        float, typer.Option(min=0.001, help="Target of TTFT.", rich_help_panel=_REPORT)
    ] = 500.0,
    itl_ms: Annotated[
        float, typer.Option(min=0.001, help="Target of mean ITL.", rich_help_panel=_REPORT)
    ] = 40.0,
    gpus: Annotated[
        int | None,
        typer.Option(min=1, help="That serve, for figures of each.", rich_help_panel=_REPORT),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(help="Write a report with plots.", rich_help_panel=_REPORT),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document.", rich_help_panel=_REPORT)
    ] = False,
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

    bounds = Cut(from_s, to_s, min_isl, max_isl, min_osl, max_osl)
    flags = LoadFlags(
        None if trace is None else TraceFlags(trace, form, limit, speedup, scale, bounds),
        ArrivalFlags(arrivals, requests_per_s, to_rate, period_s, burstiness, swing),
        isl,
        osl,
        turns,
        think_s,
        users,
        seconds,
        limit,
        priority_class,
        seed,
    )
    run_flags = RunFlags(
        TargetFlags(target, api, served_model, api_key_file, ca, timeout_s),
        Targets(ttft_ms, itl_ms),
        model,
        prompts,
        temperature,
        ignore_eos,
        gpus,
    )
    try:
        _run(flags, run_flags, html, as_json)
    except LoadError as error:
        raise UsageError(error.message, error.hint) from error


def _run(flags: LoadFlags, run_flags: RunFlags, html: Path | None, as_json: bool) -> None:
    from orchestrator.cli.load_run import run_load
    from orchestrator.cli.load_terminal import live, print_report

    if html is not None and not html.parent.is_dir():
        raise UsageError(f"--html {html}: there is no folder {html.parent}")
    with live() as seen:
        document = run_load(flags, run_flags, seen)
    if html is not None:
        from orchestrator.cli.load_compare import write_page
        from orchestrator.cli.load_page import page

        what = "load" if flags.trace is None else flags.trace.path.name
        write_page(html, page(document, f"{what} on {run_flags.target.target or 'this machine'}"))
    if as_json:
        print_json(document)
    else:
        print_report(document)
    if not document["finished"] and document["failed"]:
        raise UserError("no request ended well", "see the failures above")


app.callback(invoke_without_command=True)(reported(load))
app.command("compare")(reported(compare))
app.command("speed-bench")(reported(speed_bench))
