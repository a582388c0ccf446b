"""`tandem batch`: a file of prompts in, a file of answers out, no cluster needed."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.terminal import note, print_json, progress

if TYPE_CHECKING:
    from orchestrator.batch.run import BatchSummary

_LAYOUT = "Parallel layout"

# Each flag is a view of one key of the spec.
_FLAGS = {
    "model.path": "--model",
    "model.dtype": "--dtype",
    "prefill.layout.tp": "--prefill-tp",
    "decode.layout.kvp": "--kvp",
    "decode.layout.tpa": "--tpa",
    "decode.layout.ep": "--ep",
    "decode.layout.tpf": "--tpf",
    "decode.draft_tokens": "--draft-tokens",
    "telemetry.trace_file": "--trace-file",
}


def batch(
    model: Annotated[Path, typer.Option(help="Checkpoint folder.")],
    input_file: Annotated[
        Path, typer.Option("--input", exists=True, dir_okay=False, help="JSON lines of prompts.")
    ],
    output_file: Annotated[
        Path, typer.Option("--output", dir_okay=False, help="JSON lines of answers, same order.")
    ],
    prefill_tp: Annotated[int, typer.Option(help="TP of prefill.", rich_help_panel=_LAYOUT)] = 1,
    kvp: Annotated[int, typer.Option(help="KVP of decode.", rich_help_panel=_LAYOUT)] = 1,
    tpa: Annotated[int, typer.Option(help="TPA of decode.", rich_help_panel=_LAYOUT)] = 1,
    ep: Annotated[int, typer.Option(help="EP of decode.", rich_help_panel=_LAYOUT)] = 1,
    tpf: Annotated[int, typer.Option(help="TPF of decode.", rich_help_panel=_LAYOUT)] = 1,
    draft_tokens: Annotated[
        str, typer.Option(help="MTP draft tokens: auto, or 0 to 7.", rich_help_panel=_LAYOUT)
    ] = "auto",
    colocated: Annotated[
        bool, typer.Option("--colocated", help="One engine that reads and writes.")
    ] = False,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of each engine.")] = 1,
    trace_file: Annotated[str | None, typer.Option(help="File that spans go to.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a summary as one JSON document.")
    ] = False,
) -> None:
    """Answer every line of a file; a bad line gets its error and harms no other."""
    from orchestrator.batch.run import read_lines, run_batch
    from orchestrator.errors import UsageError
    from orchestrator.spec import load_spec, refuse_unbuilt

    overrides: dict[str, object] = {
        "model.path": str(model),
        "model.dtype": dtype,
        "prefill.layout.tp": prefill_tp,
        "prefill.workers.min": 0 if colocated else 1,
        "prefill.resources.cpu": threads,
        "decode.layout.kvp": kvp,
        "decode.layout.tpa": tpa,
        "decode.layout.ep": ep,
        "decode.layout.tpf": tpf,
        "decode.draft_tokens": int(draft_tokens) if draft_tokens.isdigit() else draft_tokens,
        "decode.resources.cpu": threads,
        "telemetry.trace_file": trace_file,
    }
    spec = load_spec(None, overrides, _FLAGS)
    refuse_unbuilt(spec, _FLAGS)
    if colocated and prefill_tp > 1:
        note(f"--prefill-tp {prefill_tp} has no effect: no prefill worker is started")
    lines = read_lines(input_file)
    try:
        output = output_file.open("w", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--output {output_file}: {error.strerror}") from error
    with output, _bar(len(lines), quiet=as_json) as (report, answered):
        summary = run_batch(spec, lines, output, colocated, report, answered)
    _tell(summary, as_json)
    if summary.failed:
        note(f'error: {summary.failed} lines failed; see "error" in {output_file}')
        raise typer.Exit(1)


def _tell(summary: BatchSummary, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "lines": summary.lines,
                "failed": summary.failed,
                "tokens": summary.tokens,
                "seconds": round(summary.seconds, 3),
            }
        )
        return
    rate = summary.tokens / summary.seconds if summary.seconds else 0.0
    note(
        f"answered {summary.lines - summary.failed} of {summary.lines} lines: "
        f"{summary.tokens} tokens in {summary.seconds:.1f} s ({rate:.0f} tokens/s)"
    )


@contextlib.contextmanager
def _bar(total: int, quiet: bool) -> Iterator[tuple[Callable[[str], None], Callable[[], None]]]:
    """A progress bar on a terminal; elsewhere one line for each step."""
    if quiet or not sys.stdout.isatty():
        with progress(spinner=False) as report:
            yield report, lambda: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task("", total=total)
        yield (
            lambda message: bar.update(task, description=message),
            lambda: bar.advance(task),
        )
