"""A plan as a PNG, drawn by matplotlib: what slides and chats take, where a page is too much.

matplotlib is loaded here and nowhere else, so only who asks for a PNG waits for it.
"""

from __future__ import annotations

import io
import textwrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from orchestrator.drawing import BLUE, GREY, INK, RED
from orchestrator.planner.labels import Label, chosen_label, labels
from orchestrator.planner.plan import Plan

_INCHES, _DOTS_PER_INCH = (10.0, 6.2), 150
_LABEL_WIDTH = 34
# Share of the width beyond which a label would leave the picture.
_LAST_TO_THE_RIGHT = 0.8


def png(plan: Plan) -> bytes:
    """The picture: throughput of a GPU over the speed that a user sees, both logarithmic."""
    question = plan.question
    figure = Figure(figsize=_INCHES, dpi=_DOTS_PER_INCH, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(
        f"{question.model.name} on {question.devices} {question.hardware.name}: "
        f"{question.workload.description}"
    )
    axes.set_xlabel("interactivity: tokens/s that one user sees")
    axes.set_ylabel("throughput: tokens/s for each GPU")
    ours = [(point.tokens_per_s_user, point.tokens_per_s_gpu) for point in plan.frontier]
    _curve(axes, ours, BLUE, "-", "matched prefill and decode pools")
    _curve(axes, list(plan.colocated_frontier), GREY, "--", "colocated")
    if axes.lines:
        _draw_rest(axes, plan)
    else:
        axes.text(
            0.5,
            0.5,
            "no candidate meets the TTFT target",
            ha="center",
            transform=axes.transAxes,
        )
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _curve(
    axes: Axes, points: list[tuple[float, float]], colour: str, style: str, label: str
) -> None:
    drawn = [point for point in points if min(point) > 0.0]
    if drawn:
        users, gpus = zip(*drawn, strict=True)
        axes.plot(users, gpus, style, color=colour, marker="o", markersize=3.5, label=label)


def _draw_rest(axes: Axes, plan: Plan) -> None:
    """Scales, the target, the chosen point and what is written at points."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.grid(color="#d0d7de", linewidth=0.7)
    chosen = chosen_label(plan)
    if plan.question.targets.itl_s > 0.0:
        itl_ms = plan.question.targets.itl_s * 1e3
        axes.axvline(1e3 / itl_ms, color=RED, linestyle=":", label=f"ITL target, {itl_ms:g} ms")
    if chosen is not None:
        axes.plot(
            [chosen.user],
            [chosen.gpu],
            "o",
            markersize=12,
            markerfacecolor="none",
            markeredgecolor=RED,
            markeredgewidth=2.2,
            label="chosen for the targets",
        )
    # Room for what is written above and to the right of points.
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * 2.2)
    for label in labels(plan):
        _write(axes, label, GREY, above=False)
    if chosen is not None:
        _write(axes, chosen, RED, above=True)
    axes.legend(loc="lower left")


def _write(axes: Axes, label: Label, colour: str, *, above: bool) -> None:
    """Curves fall to the right, so the upper right of a point is free, and near the edge the lower
    left; what is chosen is written higher still."""
    across, _ = axes.transAxes.inverted().transform(
        axes.transData.transform((label.user, label.gpu))
    )
    is_left = across > _LAST_TO_THE_RIGHT
    axes.annotate(
        textwrap.fill(label.text, _LABEL_WIDTH),
        (label.user, label.gpu),
        xytext=(-12, -4) if is_left else (10, 28 if above else 6),
        textcoords="offset points",
        fontsize=7.5,
        color=colour if above else INK,
        va="top" if is_left else "bottom",
        ha="right" if is_left else "left",
        arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.8},
    )
