"""A plan as a picture: one HTML file with an SVG inside, which needs nothing from elsewhere."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence

from orchestrator.drawing import (
    BLUE,
    GREY,
    INK,
    RED,
    Box,
    LogScale,
    axes,
    html_page,
    html_table,
    legend_line,
    line,
    svg,
)
from orchestrator.planner.labels import Label, chosen_label, labels
from orchestrator.planner.plan import Plan
from orchestrator.planner.words import summary_lines

_BOX = Box(960, 600, 84, 24, 24, 64)
_LABEL_WIDTH, _LABEL_PIXELS, _LINE_PIXELS = 34, 200, 13
_ABOVE, _CHOSEN_ABOVE = 16.0, 54.0
# Room above the highest point for what is written there.
_HEADROOM = 3.0

Curve = Sequence[tuple[float, float]]


def page(plan: Plan) -> str:
    """The HTML document."""
    question = plan.question
    title = f"{question.model.name} on {question.devices} {question.hardware.name}"
    lines = "".join(f"<li>{html.escape(line)}</li>" for line in summary_lines(plan))
    return html_page(
        title,
        f"<h1>{html.escape(title)}: {html.escape(question.workload.description)}</h1>"
        f"{drawing(plan)}<ul>{lines}</ul>{_table(plan)}",
    )


def drawing(plan: Plan) -> str:
    """The SVG: throughput of a GPU over the speed a user sees, both logarithmic."""
    ours = [(point.tokens_per_s_user, point.tokens_per_s_gpu) for point in plan.frontier]
    other = list(plan.colocated_frontier)
    both = [point for point in [*ours, *other] if min(point) > 0.0]
    if not both:
        return "<p>No candidate meets the TTFT target, so there is nothing to draw.</p>"
    x = LogScale.around([point[0] for point in both], *_BOX.span_x)
    gpus = [point[1] for point in both]
    y = LogScale.around([min(gpus), max(gpus) * _HEADROOM], *_BOX.span_y)
    parts = [
        *axes(
            _BOX,
            x,
            y,
            "interactivity: tokens/s that one user sees",
            "throughput: tokens/s for each GPU",
        ),
        *line(_positive(other), x, y, GREY, "5 4", dot=2.5),
        *line(_positive(ours), x, y, BLUE, dot=2.5),
    ]
    if plan.question.targets.itl_s > 0.0:
        parts += _target(1.0 / plan.question.targets.itl_s, x)
    for label in labels(plan):
        parts += _write(label, x, y)
    chosen = chosen_label(plan)
    if chosen is not None and _is_inside(chosen, x, y):
        parts += _mark(chosen, x, y)
    parts += _legend(bool(other))
    return svg(_BOX, "tokens per second and GPU over tokens per second and user", parts)


def _positive(curve: Curve) -> Curve:
    return [point for point in curve if min(point) > 0.0]


def _target(user: float, x: LogScale) -> list[str]:
    if not x.low < user < x.high:
        return []
    at = x.at(user)
    return [
        f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{_BOX.top}" y2="{_BOX.height - _BOX.bottom}" '
        f'stroke="{RED}" stroke-dasharray="2 3"/>',
        f'<text x="{at + 5:.1f}" y="{_BOX.height - _BOX.bottom - 8}">ITL target</text>',
    ]


def _is_inside(label: Label, x: LogScale, y: LogScale) -> bool:
    return x.low <= label.user <= x.high and y.low <= label.gpu <= y.high


def _mark(chosen: Label, x: LogScale, y: LogScale) -> list[str]:
    return [
        f'<circle cx="{x.at(chosen.user):.1f}" cy="{y.at(chosen.gpu):.1f}" r="7" fill="none" '
        f'stroke="{RED}" stroke-width="2.5"/>',
        *_write(chosen, x, y, RED, _CHOSEN_ABOVE),
    ]


def _write(
    label: Label, x: LogScale, y: LogScale, colour: str = INK, above: float = _ABOVE
) -> list[str]:
    """In lines to the upper right of a point or, near the edge, to its lower left: curves fall, so
    both are free."""
    at_x, at_y = x.at(label.user), y.at(label.gpu)
    rows = textwrap.wrap(label.text, _LABEL_WIDTH)
    if at_x > _BOX.width - _BOX.right - _LABEL_PIXELS:
        anchor, shift, top = "end", -10, at_y + _LINE_PIXELS
        drop = []
    else:
        anchor, shift, top = "start", 4, at_y - above - _LINE_PIXELS * (len(rows) - 1)
        drop = [
            f'<line x1="{at_x:.1f}" y1="{at_y - 8:.1f}" x2="{at_x:.1f}" '
            f'y2="{at_y - above + 4:.1f}" stroke="{GREY}"/>'
        ]
    return [
        *drop,
        *(
            f'<text x="{at_x + shift:.1f}" y="{top + _LINE_PIXELS * number:.1f}" font-size="10.5" '
            f'fill="{colour}" text-anchor="{anchor}">{html.escape(row)}</text>'
            for number, row in enumerate(rows)
        ),
    ]


def _legend(with_other: bool) -> list[str]:
    rows = [(BLUE, "", "matched prefill and decode pools")]
    if with_other:
        rows.append((GREY, "5 4", "colocated"))
    parts = []
    # Curves fall from the upper left to the right: the lower left is free.
    right, top = _BOX.left + 14, _BOX.height - _BOX.bottom - 96
    for row, (colour, dashes, label) in enumerate(rows):
        parts += legend_line(right, top + 18 + 20 * row, colour, dashes, label)
    at = top + 18 + 20 * len(rows)
    parts.append(
        f'<circle cx="{right + 14}" cy="{at - 4}" r="6" fill="none" stroke="{RED}" '
        'stroke-width="2.5"/>'
    )
    parts.append(f'<text x="{right + 36}" y="{at}">chosen for the targets</text>')
    return parts


def _table(plan: Plan) -> str:
    """The frontier in figures, for those who do not see the picture."""
    if not plan.frontier:
        return ""
    return html_table(
        ("tokens/s/user", "tokens/s/GPU", "ctx:gen", "prefill", "decode"),
        [
            (
                f"{point.tokens_per_s_user:,.0f}",
                f"{point.tokens_per_s_gpu:,.0f}",
                f"{point.gpu_ratio:.2f}",
                point.prefill,
                point.decode,
            )
            for point in plan.frontier
        ],
    )
