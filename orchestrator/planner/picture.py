"""A plan as a picture: one HTML file with an SVG inside, which needs nothing from elsewhere."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.planner.plan import Plan
from orchestrator.planner.report import gain_over_colocated
from orchestrator.planner.words import summary_lines

_WIDTH, _HEIGHT = 860, 520
_LEFT, _RIGHT, _TOP, _BOTTOM = 84, 24, 24, 64
_GRID = 'stroke="#d0d7de"'
_OURS, _OTHER, _MARK = "#1f6feb", "#8b949e", "#d1242f"

Curve = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class _Scale:
    """Logarithmic axis from `low` to `high`, onto pixels from `begin` to `end`."""

    low: float
    high: float
    begin: float
    end: float

    def at(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.begin + share * (self.end - self.begin)

    def ticks(self) -> list[float]:
        """1, 2 and 5 times powers of ten; only powers when there are many."""
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        steps = (1, 2, 5) if self.high / self.low < 300 else (1,)
        values = [step * 10.0**decade for decade in decades for step in steps]
        return [value for value in values if self.low <= value <= self.high]


def page(plan: Plan) -> str:
    """The HTML document."""
    question = plan.question
    title = f"{question.model.name} on {question.devices} {question.hardware.name}"
    lines = "".join(f"<li>{html.escape(line)}</li>" for line in summary_lines(plan))
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        f"<title>{html.escape(title)}</title><style>"
        "body{font:15px/1.45 system-ui,sans-serif;max-width:900px;margin:2em auto;padding:0 1em;"
        "color:#1f2328;background:#fff}h1{font-size:1.3em}svg{width:100%;height:auto}"
        "</style></head><body>"
        f"<h1>{html.escape(title)}: {html.escape(question.workload.description)}</h1>"
        f"{drawing(plan)}<ul>{lines}</ul>{_table(plan)}</body></html>\n"
    )


def drawing(plan: Plan) -> str:
    """The SVG: throughput of a GPU over the speed a user sees, both logarithmic."""
    ours = [(point.tokens_per_s_user, point.tokens_per_s_gpu) for point in plan.frontier]
    other = list(plan.colocated_frontier)
    both = [point for point in [*ours, *other] if min(point) > 0.0]
    if not both:
        return "<p>No candidate meets the TTFT target, so there is nothing to draw.</p>"
    x = _scale([point[0] for point in both], _LEFT, _WIDTH - _RIGHT)
    y = _scale([point[1] for point in both], _HEIGHT - _BOTTOM, _TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        'aria-label="tokens per second and GPU over tokens per second and user" '
        'font-family="DejaVu Sans, Helvetica, Arial, sans-serif" font-size="13" fill="#1f2328">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        *_axes(x, y),
        *_line(other, x, y, _OTHER, "5 4"),
        *_line(ours, x, y, _OURS, ""),
    ]
    if plan.question.targets.itl_s > 0.0:
        parts += _target(1.0 / plan.question.targets.itl_s, x)
    if plan.chosen is not None:
        parts += _mark(plan.chosen.tokens_per_s_user, plan.chosen.tokens_per_s_gpu, x, y)
    parts += _legend(bool(other))
    return "".join([*parts, "</svg>"])


def _scale(values: Sequence[float], begin: float, end: float) -> _Scale:
    return _Scale(min(values) / 1.3, max(values) * 1.3, begin, end)


def _axes(x: _Scale, y: _Scale) -> list[str]:
    bottom = _HEIGHT - _BOTTOM
    parts = []
    for tick in x.ticks():
        at = x.at(tick)
        parts.append(f'<line {_GRID} x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{bottom}"/>')
        parts.append(f'<text x="{at:.1f}" y="{bottom + 20}" text-anchor="middle">{tick:g}</text>')
    for tick in y.ticks():
        at = y.at(tick)
        parts.append(
            f'<line {_GRID} x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        )
        parts.append(f'<text x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{tick:,g}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(
        f'<text x="{middle}" y="{_HEIGHT - 16}" text-anchor="middle">'
        "interactivity: tokens/s that one user sees</text>"
    )
    parts.append(
        f'<text transform="translate(18 {(_TOP + bottom) / 2}) rotate(-90)" text-anchor="middle">'
        "throughput: tokens/s for each GPU</text>"
    )
    return parts


def _line(curve: Curve, x: _Scale, y: _Scale, colour: str, dashes: str) -> list[str]:
    points = [(x.at(user), y.at(gpu)) for user, gpu in curve if user > 0.0 and gpu > 0.0]
    path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
    style = f'fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}"'
    dots = [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="2.5" fill="{colour}"/>' for px, py in points]
    return [f'<polyline points="{path}" {style}/>', *dots]


def _target(user: float, x: _Scale) -> list[str]:
    if not x.low < user < x.high:
        return []
    at = x.at(user)
    return [
        f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}" '
        f'stroke="{_MARK}" stroke-dasharray="2 3"/>',
        f'<text x="{at + 5:.1f}" y="{_HEIGHT - _BOTTOM - 8}">ITL target</text>',
    ]


def _mark(user: float, gpu: float, x: _Scale, y: _Scale) -> list[str]:
    if gpu <= 0.0 or not (x.low <= user <= x.high and y.low <= gpu <= y.high):
        return []
    return [
        f'<circle cx="{x.at(user):.1f}" cy="{y.at(gpu):.1f}" r="7" fill="none" '
        f'stroke="{_MARK}" stroke-width="2.5"/>'
    ]


def _legend(with_other: bool) -> list[str]:
    rows = [(_OURS, "", "matched prefill and decode pools")]
    if with_other:
        rows.append((_OTHER, "5 4", "colocated"))
    parts = []
    # Curves fall from the upper left to the right: the lower left is free.
    right, top = _LEFT + 14, _HEIGHT - _BOTTOM - 96
    for row, (colour, dashes, label) in enumerate(rows):
        at = top + 18 + 20 * row
        parts.append(
            f'<line x1="{right}" x2="{right + 28}" y1="{at - 4}" y2="{at - 4}" stroke="{colour}" '
            f'stroke-width="2" stroke-dasharray="{dashes}"/>'
        )
        parts.append(f'<text x="{right + 36}" y="{at}">{label}</text>')
    at = top + 18 + 20 * len(rows)
    parts.append(
        f'<circle cx="{right + 14}" cy="{at - 4}" r="6" fill="none" stroke="{_MARK}" '
        'stroke-width="2.5"/>'
    )
    parts.append(f'<text x="{right + 36}" y="{at}">chosen for the targets</text>')
    return parts


def _table(plan: Plan) -> str:
    """The frontier in figures, for those who do not see the picture."""
    if not plan.frontier:
        return ""
    head = "".join(
        f"<th align=left>{name}</th>"
        for name in ("tokens/s/user", "tokens/s/GPU", "ctx:gen", "prefill", "decode")
    )
    rows = "".join(
        f"<tr><td>{point.tokens_per_s_user:,.0f}<td>{point.tokens_per_s_gpu:,.0f}"
        f"<td>{point.gpu_ratio:.2f}<td>{html.escape(point.prefill)}"
        f"<td>{html.escape(point.decode)}</tr>"
        for point in plan.frontier
    )
    gain = gain_over_colocated(plan)
    note = "" if gain is None else f"<p>Over colocated serving at the targets: {gain:.2f}x.</p>"
    return f"{note}<table cellpadding=4><tr>{head}</tr>{rows}</table>"
