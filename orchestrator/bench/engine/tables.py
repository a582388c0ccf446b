"""The findings of a bench of the engine as tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from orchestrator.bench.engine.results import Findings
from orchestrator.bench.engine.settings import Settings
from orchestrator.bench.engine.speeds import Ratio, SpeedTable
from orchestrator.bench.targets import Target

_LEAST_WIDTH = 120
_MIB = 2**20


def print_tables(console: Console, settings: Settings, findings: Findings) -> None:
    """Everything that was measured; targets come apart."""
    for title, speeds in findings.tables.items():
        console.print(_speeds(title, speeds, settings))
        _print_reasons(console, ((row.contender, row.why) for row in speeds.rows))
    if findings.prefill or findings.mixed:
        console.print(_comparisons(findings))
    facts = _facts(findings)
    if facts:
        table = _table("Further measurements", ["what", "figures"], [])
        for what, figures in facts:
            table.add_row(what, figures)
        console.print(table)


def print_targets(console: Console, targets: Sequence[Target]) -> None:
    """One line for each target, with its reason when it has one."""
    table = _table("Targets", ["target"], ["value", "goal", "met"])
    table.add_column("why", overflow="fold")
    for target in targets:
        value = "" if target.value is None else f"{target.value:.2f} {target.goal.unit}"
        met = {True: "[green]yes[/]", False: "[red]no[/]", None: "[yellow]?[/]"}[target.met]
        table.add_row(target.goal.name, value, str(target.goal), met, target.why or "")
    console.print(table)


def wide_console() -> Console:
    """Standard output, wide enough for the tables also where it is a file."""
    console = Console()
    return Console(width=max(console.width, _LEAST_WIDTH))


def _speeds(title: str, speeds: SpeedTable, settings: Settings) -> Table:
    heading = f"{title}: {settings.isl} tokens in, {settings.osl} out (x: ours over the peer's)"
    numbers = ["batch", "prefill t/s", "decode t/s", "ms/step", "AL", "MiB"]
    table = _table(heading, ["contender", "type"], numbers, wrap=False)
    for peer in settings.against:
        table.add_column(f"{peer}\nprefill, decode", justify="right", no_wrap=True)
    for row in speeds.rows:
        table.add_row(
            row.contender,
            row.dtype or "",
            str(row.batch),
            _number(row.prefill_tokens_per_s, 0),
            _number(row.decode_tokens_per_s, 0),
            _number(row.step_ms, 2),
            _number(row.acceptance_length, 2),
            _number(None if row.peak_bytes is None else row.peak_bytes / _MIB, 0),
            *(_ratio(row.ratios.get(peer)) for peer in settings.against),
        )
    return table


def _comparisons(findings: Findings) -> Table:
    table = _table("Side by side", ["what", "contender", "variant"], ["tokens/s", "ours over it"])
    found = [(f"{title}: prompt of 512", one) for title, one in findings.prefill.items()]
    if findings.mixed is not None:
        found.append(("mixed answers", findings.mixed))
    for what, one in found:
        for name, figure in one.tokens_per_s.items():
            ratio = one.ratios.get(name)
            table.add_row(
                what,
                name,
                one.variants[name] or one.reasons.get(name, ""),
                _number(figure, 0),
                "" if ratio is None else f"{ratio:.2f}x",
            )
    return table


def _facts(findings: Findings) -> list[tuple[str, str]]:
    facts = []
    prefix = findings.prefix
    if prefix is not None and prefix.speedup is not None:
        facts.append(
            (
                f"cached prefix of {prefix.cached_tokens} tokens ({prefix.dtype})",
                f"TTFT {_number(prefix.cold_ttft_ms, 1)} ms without, "
                f"{_number(prefix.warm_ttft_ms, 1)} ms with: {prefix.speedup:.1f}x",
            )
        )
    for one in findings.roofline:
        if one.share is not None and one.share_of_wide is not None:
            facts.append(
                (
                    f"roofline, batch {one.batch} ({one.dtype})",
                    f"{one.share:.0%}, bound by {one.bound_by}: step {_number(one.step_ms, 2)} ms, "
                    f"read {_number(one.read_gb_per_s, 1)} GB/s, "
                    f"matmul {_number(one.matmul_gflops_per_s, 0)} GFLOPS "
                    f"({_number(one.wide_matmul_gflops_per_s, 0)} with many rows: "
                    f"{one.share_of_wide:.0%})",
                )
            )
    overhead = findings.overhead
    if overhead is not None and overhead.outside_share is not None:
        facts.append(
            (
                f"outside torch operations, batch {overhead.batch} ({overhead.dtype})",
                f"at most {overhead.outside_share:.1%}: step {_number(overhead.step_ms, 2)} ms, "
                f"profiled {_number(overhead.profiled_step_ms, 2)} ms, of it "
                f"{_number(overhead.torch_ms, 2)} ms in {_number(overhead.operations, 0)} "
                "operations",
            )
        )
    return facts


def _print_reasons(console: Console, reasons: Iterable[tuple[str, str | None]]) -> None:
    for contender, why in dict.fromkeys(reasons):
        if why is not None:
            console.print(f"{contender}: {why}", style="yellow", markup=False)


def _table(title: str, words: Sequence[str], numbers: Sequence[str], *, wrap: bool = True) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold")
    for word in words:
        table.add_column(word, no_wrap=not wrap)
    for number in numbers:
        table.add_column(number, justify="right")
    return table


def _ratio(ratio: Ratio | None) -> str:
    if ratio is None or ratio.prefill is None or ratio.decode is None:
        return ""
    return f"{ratio.prefill:.2f}x, {ratio.decode:.2f}x"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"
