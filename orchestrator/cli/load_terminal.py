"""How `tandem load` talks while it runs and at its end."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator

from loadgen.figures import percentile
from loadgen.results import Run
from orchestrator.cli.load_words import (
    LATENCY_HEAD,
    Document,
    latency_rows,
    shown,
    summary_lines,
    table,
    texts,
    what_was_sent,
)
from orchestrator.cli.terminal import note

# Live percentiles are of the last so many requests.
_RECENT = 500


@contextlib.contextmanager
def live() -> Iterator[Callable[[Run], None]]:
    """One line that changes, where standard error is a terminal."""
    if not sys.stderr.isatty():
        yield lambda run: None
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), transient=True, refresh_per_second=4) as view:
        yield lambda run: view.update(_line(run))


def _line(run: Run) -> str:
    now = run.timeline[-1].progress
    past = run.timeline[-6].progress if len(run.timeline) > 5 else run.timeline[0].progress
    seconds = max(now.at_s - past.at_s, 1e-9)
    recent = run.recorder.records[-_RECENT:]
    ttft_ms = [one.ttft_ms for one in recent if not math.isnan(one.first_s)]
    cluster = run.timeline[-1].cluster
    queue = "" if cluster is None or cluster.queued is None else f"  queued {cluster.queued}"
    return (
        f"{now.at_s:6.0f} s  sent {now.sent}  open {now.open}{queue}  finished {now.finished}  "
        f"failed {now.failed}  {(now.tokens - past.tokens) / seconds:,.0f} tokens/s  "
        f"TTFT p50 {shown(percentile(ttft_ms, 50), 0)} p99 {shown(percentile(ttft_ms, 99), 0)} ms"
    )


def print_report(document: Document) -> None:
    """The report of a run, for people."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print(what_was_sent(document), style="dim", markup=False, soft_wrap=True)
    for text in summary_lines(document):
        console.print(f"- {text}", markup=False)
    found = latency_rows(document)
    if found:
        latencies = Table(*LATENCY_HEAD)
        for row in found:
            latencies.add_row(*row)
        console.print(latencies)
    for reason, detail in table(document, "first_errors").items():
        if detail:
            console.print(f"{reason}: {detail}", style="red", markup=False)
    for warning in texts(document, "warnings"):
        note(f"note: {warning}")
