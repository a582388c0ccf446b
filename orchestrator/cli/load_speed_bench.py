"""`tandem load speed-bench`: how far a target's drafts are accepted, by kind of question."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from orchestrator.cli import load_speed_bench_flags as flags
from orchestrator.cli.terminal import note, print_json
from orchestrator.errors import UsageError, UserError


def speed_bench(
    data: flags.Data = None,
    config: flags.Config = "",
    categories: flags.Categories = "",
    per_category: flags.PerCategory = None,
    osl: flags.Osl = 4096,
    concurrency: flags.Concurrency = 32,
    temperature: flags.Temperature = 0.0,
    baseline: flags.Baseline = None,
    model: flags.Model = None,
    target: flags.Target = None,
    served_model: flags.ServedModel = "",
    api_key_file: flags.ApiKeyFile = None,
    ca: flags.Ca = None,
    timeout_s: flags.TimeoutS = 600.0,
    as_json: flags.AsJson = False,
) -> None:
    """Ask SPEED-Bench's questions and report acceptance and speed."""
    from loadgen.errors import LoadError
    from loadgen.speedbench import results
    from loadgen.speedbench.rows import SAMPLE, read_questions, select
    from loadgen.speedbench.sessions import sessions_of
    from orchestrator.cli.load_run import ask_questions
    from orchestrator.cli.load_target import TargetFlags
    from orchestrator.cli.load_terminal import live

    if target is not None and target.startswith("grpc"):
        raise UsageError(
            f"--target {target}: the questions are chats, which are asked for over HTTP",
            "name the router's http:// address",
        )
    asked = TargetFlags(target, "chat", served_model, api_key_file, ca, timeout_s)
    before = None if baseline is None else _read_report(baseline)
    try:
        names = [name.strip() for name in categories.split(",") if name.strip()]
        questions = select(read_questions(data or SAMPLE, config), names, per_category)
        sessions = sessions_of(questions, osl)
        with live() as seen:
            run = ask_questions(sessions, asked, model, concurrency, temperature, seen)
    except LoadError as error:
        raise UsageError(error.message, error.hint) from error
    description = {
        "target": dict(run.target),
        "data": "sample" if data is None else str(data),
        "osl": osl,
        "concurrency": concurrency,
        "temperature": temperature,
        "interrupted": run.interrupted,
    }
    for told in _differences(before or {}, description):
        note(f"note: {told}")
    report = results.document(questions, run.recorder.records, description, before)
    if as_json:
        print_json(report)
    else:
        _print(report)
    if not report["answered"] and run.interrupted:
        raise UserError("stopped before any question was answered", "try --per-category 1")
    if not report["answered"]:
        raise UserError("no question was answered", "see the failures above")


def _read_report(path: Path) -> Mapping[str, object]:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"--baseline {path}: cannot be read: {error}") from error
    if not isinstance(report, dict) or "user_tokens_per_s" not in report:
        raise UsageError(
            f"--baseline {path}: is no report of speed-bench",
            "write one with `tandem load speed-bench --json > k0.json`, of a target without drafts",
        )
    return report


def _differences(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """What makes a baseline that of another load."""
    return [
        f"--baseline has {name} {before[name]}, this run {now[name]}: two loads are compared"
        for name in ("data", "osl", "concurrency", "temperature")
        if name in before and before[name] != now[name]
    ]


def _print(report: Mapping[str, object]) -> None:
    from rich.console import Console
    from rich.table import Table

    from orchestrator.cli.load_words import number, shown, table

    console = Console(highlight=False)
    by_category = Table("category", "acceptance length", "requests")
    for name, found in table(report, "acceptance_length_by_category").items():
        row = {name: found}
        by_category.add_row(
            name, shown(number(row, name, "length"), 2), shown(number(row, name, "requests"), 0)
        )
    by_category.add_section()
    by_category.add_row(
        "all", shown(number(report, "acceptance_length"), 2), shown(number(report, "answered"), 0)
    )
    console.print(by_category)
    rates = report["conditional_acceptance"]
    if isinstance(rates, list) and rates:
        told = ", ".join(f"{place}: {rate:.0%}" for place, rate in enumerate(rates, 1))
        console.print(f"- conditional acceptance by position: {told}", markup=False)
    console.print(
        f"- {shown(number(report, 'output_tokens_per_s'), 0)} output tokens/s, "
        f"{shown(number(report, 'user_tokens_per_s'), 1)} for a user",
        markup=False,
    )
    speedup = table(report, "speedup")
    if speedup:
        told = ", ".join(f"{name} {shown(number(speedup, name), 2)}" for name in speedup)
        console.print(f"- speedup: {told}", markup=False)
    measured = report["acceptance_measured"]
    if report["answered"]:
        note(f"acceptance by {measured}" if measured else "the target does not tell acceptance")
    answered, questions = report["answered"], report["questions"]
    if answered != questions:
        stopped = "the run was stopped: " if report["interrupted"] else ""
        note(f"note: {stopped}{answered} of {questions} questions were answered")
    if report["data"] == "sample":
        note("note: a sample of our own was asked, which is not comparable with published figures")
    for reason, detail in table(report, "first_errors").items():
        note(f"failed: {reason}: {detail}")
