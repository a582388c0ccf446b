"""The report as Markdown with plots: a row for each policy, and how the targets are met."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orchestrator.autoscaler.comparison.bound import bound_of
from orchestrator.autoscaler.comparison.cases import COLD_STARTS_S, FLOORS, Case
from orchestrator.autoscaler.comparison.compare import Runs, floor_name, key_of
from orchestrator.autoscaler.comparison.runs import Figures
from orchestrator.autoscaler.names import NAMES
from orchestrator.drawing import (
    AMBER,
    BLUE,
    GREY,
    Box,
    Curve,
    LinearScale,
    axes,
    legend_line,
    line,
    svg,
)

_GOAL = 0.99
_OVER_ORACLE = 1.25
_SETTLED = 3  # periods
_NOT_RUN = "not run"
_OTHERS = ("ray-default", "per-role", "threshold", "static-best")
_EQUAL = 0.005  # attainments that differ by no more are called equal
_PLOTTED: tuple[tuple[str, str, str], ...] = (
    ("oracle", GREY, "4 3"),
    ("per-role", AMBER, ""),
    ("tandem", BLUE, ""),
)
_HEAD = (
    "| policy | SLO attainment | lost | refused | GPU-hours | over the oracle's "
    "| goodput per GPU-hour | actions per hour |\n|---|---|---|---|---|---|---|---|\n"
)


def write_report(page: Path, cases: Sequence[Case], runs: Runs) -> None:
    """Fill what is between the markers of the page, and draw the plots beside it."""
    sections: list[str] = []
    folder = page.with_suffix("")
    for case in cases:
        for cold_start_s in COLD_STARTS_S:
            found = _of_case(case, cold_start_s, runs)
            if "tandem" not in found or "oracle" not in found:
                continue
            name = f"{case.name}-{cold_start_s:g}.svg"
            folder.mkdir(exist_ok=True)
            (folder / name).write_text(_plot(case.name, found), encoding="utf-8")
            title = f"### {case.name}, cold start {cold_start_s:g} s\n\n"
            plot = f"\n![workers over time]({folder.name}/{name})\n"
            floors = _floors(case, cold_start_s, runs, found)
            sections.append(title + _table(found) + floors + plot)
    text = page.read_text(encoding="utf-8") if page.exists() else f"{_BEGIN}\n{_END}\n"
    before, rest = text.split(_BEGIN)
    after = rest.split(_END)[1]
    body = "\n".join([_targets(cases, runs), *sections])
    page.write_text(f"{before}{_BEGIN}\n\n{body}\n{_END}{after}", encoding="utf-8")


_BEGIN = "<!-- begin: written by make autoscaling-report -->"
_END = "<!-- end -->"


def _of_case(case: Case, cold_start_s: float, runs: Runs) -> dict[str, Figures]:
    rows = {name: runs.get(key_of(case.name, cold_start_s, name)) for name in NAMES}
    return {name: figures for name, figures in rows.items() if figures is not None}


def _table(found: dict[str, Figures]) -> str:
    least = found["oracle"].gpu_hours
    rows = [
        f"| {name} | {one.attainment:.2%} | {one.lost} | {one.refused} | {one.gpu_hours:.2f} "
        f"| {one.gpu_hours / least:.2f} | {one.goodput_per_gpu_hour:,.0f} "
        f"| {one.actions_per_hour:.0f} |"
        for name, one in found.items()
    ]
    return _HEAD + "\n".join(rows) + "\n"


def _floors(case: Case, cold_start_s: float, runs: Runs, found: dict[str, Figures]) -> str:
    """What it costs to hold more ready than is needed."""
    rows = [("tandem", found["tandem"])]
    for floor in FLOORS:
        figures = runs.get(key_of(case.name, cold_start_s, floor_name(floor)))
        if figures is not None:
            rows.append((floor_name(floor), figures))
    if len(rows) == 1:
        return ""
    least = found["oracle"].gpu_hours
    return (
        "\n| held ready (prefill + decode) | SLO attainment | GPU-hours over the oracle's |\n"
        "|---|---|---|\n"
    ) + "".join(
        f"| {name} | {one.attainment:.2%} | {one.gpu_hours / least:.2f} |\n" for name, one in rows
    )


def _targets(cases: Sequence[Case], runs: Runs) -> str:
    """A row for each case: the figures that the targets are about."""
    rows = [
        "| traffic | cold start | attainment (>= 99 %) | GPU-hours / oracle (<= 1.25) "
        "| goodput per GPU-hour / static-best (>= 2 where it shifts) "
        "| / best other at equal attainment (>= 1.2) | lost (0) | periods to settle (<= 3) "
        "| bound: attainment at 1.25 / cost of 99 % |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        for cold_start_s in COLD_STARTS_S:
            found = _of_case(case, cold_start_s, runs)
            if "tandem" not in found or "oracle" not in found:
                continue
            mine, least = found["tandem"], found["oracle"]
            over = mine.gpu_hours / least.gpu_hours
            static = found.get("static-best")
            times = None if static is None else _ratio(mine, static)
            best = _best_other(mine, found)
            rows.append(
                f"| {case.name} | {cold_start_s:g} s "
                f"| {mine.attainment:.2%}{_mark(mine.attainment >= _GOAL)} "
                f"| {over:.2f}{_mark(over <= _OVER_ORACLE)} "
                f"| {_NOT_RUN if times is None else _cell(times, 2.0 if case.shifting else 0.0)} "
                f"| {_against(mine, best, found)} "
                f"| {mine.lost}{_mark(mine.lost == 0)} "
                f"| {_settling(case, cold_start_s, mine)} "
                f"| {_bound(case, cold_start_s, mine.requests, least.gpu_hours)} |"
            )
    return "## Targets\n\n" + "\n".join(rows) + "\n"


def _bound(case: Case, cold_start_s: float, requests: int, oracle_hours: float) -> str:
    if case.jumps is None:
        return "-"
    ground = case.ground(case.cluster(), cold_start_s)
    bound = bound_of(case.jumps, ground, requests)
    attained = bound.best_attainment(_OVER_ORACLE * oracle_hours)
    cost = bound.least_gpu_hours(_GOAL) / oracle_hours
    return f"{attained:.2%} / {cost:.2f}"


def _settling(case: Case, cold_start_s: float, mine: Figures) -> str:
    """Periods from the first jump until the last worker was asked for that serves because of it."""
    if case.jumps is None:
        return "-"
    ground = case.ground(case.cluster(), cold_start_s)
    began_s = case.jumps.at_s[0]
    until_s = began_s + min(case.jumps.each_s, cold_start_s + 4.0 * ground.period_s)
    after_s = [at_s - began_s for at_s in mine.grew_s if began_s < at_s <= until_s]
    periods = max(after_s, default=0.0) / ground.period_s
    return f"{periods:.0f}{_mark(periods <= _SETTLED)}"


def _against(mine: Figures, best: Figures | None, found: dict[str, Figures]) -> str:
    if any(name not in found for name in _OTHERS):
        return _NOT_RUN
    if best is None:
        return "none attains as much"
    return f"{_cell(_ratio(mine, best), 1.2)} ({best.policy})"


def _best_other(mine: Figures, found: dict[str, Figures]) -> Figures | None:
    """Of the others but the oracle, the best that attains as much."""
    others = [
        one
        for name, one in found.items()
        if name in _OTHERS and one.attainment >= min(mine.attainment, _GOAL) - _EQUAL
    ]
    return max(others, key=lambda one: one.goodput_per_gpu_hour, default=None)


def _ratio(one: Figures, other: Figures) -> float:
    return one.goodput_per_gpu_hour / other.goodput_per_gpu_hour


def _cell(value: float, goal: float) -> str:
    return f"{value:.2f}{_mark(value >= goal) if goal else ''}"


def _mark(met: bool) -> str:
    return "" if met else " **missed**"


def _plot(name: str, found: dict[str, Figures]) -> str:
    """Workers of both roles over time."""
    box = Box(760, 300, 60, 20, 40, 52)
    curves: list[tuple[Curve, str, str, str]] = [
        ([(at_s / 60.0, float(p + d)) for at_s, p, d in found[policy].timeline], c, dashes, policy)
        for policy, c, dashes in _PLOTTED
        if policy in found
    ]
    most_x = max(point[0] for curve, *_ in curves for point in curve)
    most_y = max(point[1] for curve, *_ in curves for point in curve)
    x, y = LinearScale.up_to(most_x, *box.span_x), LinearScale.up_to(most_y, *box.span_y)
    parts = axes(box, x, y, "minutes", "workers that serve")
    for number, (curve, colour, dashes, label) in enumerate(curves):
        parts += line(_stairs(curve), x, y, colour, dashes)
        parts += legend_line(80.0 + 150.0 * number, 24.0, colour, dashes, label)
    return svg(box, f"Workers over time, {name}", parts)


def _stairs(curve: Curve) -> list[tuple[float, float]]:
    """Only where it changes, with a step there: small files."""
    out = [curve[0]]
    for at, value in curve[1:]:
        if value != out[-1][1]:
            out += [(at, out[-1][1]), (at, value)]
    return [*out, (curve[-1][0], out[-1][1])]
