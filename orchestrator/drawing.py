"""Plots as SVG and pages as HTML, each in one piece that needs nothing from elsewhere."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

FONT = "DejaVu Sans, Helvetica, Arial, sans-serif"
INK, BLUE, GREY, RED, GREEN, AMBER = (
    "#1f2328",
    "#1f6feb",
    "#8b949e",
    "#d1242f",
    "#1a7f37",
    "#bf8700",
)
_GRID = 'stroke="#d0d7de"'
# A number, a share, or that there is none.
_FIGURE = re.compile(r"-?[\d,]*\.?\d+ ?%?|-|")

Curve = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class LogScale:
    """Logarithmic axis from `low` to `high`, onto pixels from `begin` to `end`."""

    low: float
    high: float
    begin: float
    end: float

    @classmethod
    def around(cls, values: Sequence[float], begin: float, end: float) -> LogScale:
        """With some room on both sides of positive values."""
        return cls(min(values) / 1.3, max(values) * 1.3, begin, end)

    def at(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.begin + share * (self.end - self.begin)

    def ticks(self) -> list[float]:
        """1, 2 and 5 times powers of ten; only powers when there are many."""
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        steps = (1, 2, 5) if self.high / self.low < 300 else (1,)
        values = [step * 10.0**decade for decade in decades for step in steps]
        return [value for value in values if self.low <= value <= self.high]


@dataclass(frozen=True, slots=True)
class LinearScale:
    """Linear axis from `low` to `high`, onto pixels from `begin` to `end`; ticks are at least
    `least_step` apart: what is counted has none between whole numbers."""

    low: float
    high: float
    begin: float
    end: float
    least_step: float = 0.0

    @classmethod
    def up_to(cls, most: float, begin: float, end: float, least_step: float = 0.0) -> LinearScale:
        """From 0, with a little room above `most`."""
        return cls(0.0, max(most, least_step, 1e-9) * 1.05, begin, end, least_step)

    def at(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.begin + share * (self.end - self.begin)

    def ticks(self) -> list[float]:
        """Multiples of 1, 2 or 5 times a power of ten, seven at most."""
        rough = max((self.high - self.low) / 7.0, self.least_step)
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(one for one in (1.0, 2.0, 5.0, 10.0) if one * power >= rough) * power
        first = math.ceil(self.low / step)
        return [step * number for number in range(first, math.floor(self.high / step) + 1)]


Scale = LogScale | LinearScale


@dataclass(frozen=True, slots=True)
class Box:
    """A drawing of `width` x `height` pixels with margins around its plot."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int

    @property
    def span_x(self) -> tuple[float, float]:
        return self.left, self.width - self.right

    @property
    def span_y(self) -> tuple[float, float]:
        """From the bottom up."""
        return self.height - self.bottom, self.top


def svg(box: Box, label: str, parts: Sequence[str]) -> str:
    """The drawing; `label` is for those who do not see it."""
    return "".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {box.width} {box.height}" '
            f'role="img" aria-label="{html.escape(label)}" '
            f'font-family="{FONT}" font-size="13" fill="{INK}">',
            f'<rect width="{box.width}" height="{box.height}" fill="#ffffff"/>',
            *parts,
            "</svg>",
        ]
    )


def axes(box: Box, x: Scale, y: Scale, x_label: str, y_label: str) -> list[str]:
    """Grid, ticks and what the axes mean."""
    (left, right), (bottom, top) = box.span_x, box.span_y
    parts = []
    for tick in x.ticks():
        at = x.at(tick)
        parts.append(f'<line {_GRID} x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{bottom}"/>')
        parts.append(f'<text x="{at:.1f}" y="{bottom + 20}" text-anchor="middle">{tick:,g}</text>')
    for tick in y.ticks():
        at = y.at(tick)
        parts.append(f'<line {_GRID} x1="{left}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{left - 8}" y="{at + 4:.1f}" text-anchor="end">{tick:,g}</text>')
    parts.append(
        f'<text x="{(left + right) / 2}" y="{box.height - 16}" text-anchor="middle">'
        f"{html.escape(x_label)}</text>"
    )
    parts.append(
        f'<text transform="translate(18 {(top + bottom) / 2}) rotate(-90)" text-anchor="middle">'
        f"{html.escape(y_label)}</text>"
    )
    return parts


def line(
    curve: Curve, x: Scale, y: Scale, colour: str, dashes: str = "", dot: float = 0.0
) -> list[str]:
    """A curve, with dots of that radius at its points if it is not 0."""
    points = [(x.at(along), y.at(up)) for along, up in curve]
    path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
    style = f'fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}"'
    parts = [f'<polyline points="{path}" {style}/>']
    if dot:
        parts += [
            f'<circle cx="{px:.1f}" cy="{py:.1f}" r="{dot:g}" fill="{colour}"/>'
            for px, py in points
        ]
    return parts


def legend_line(left: float, baseline: float, colour: str, dashes: str, label: str) -> list[str]:
    """One entry of a legend, its text's baseline at a height."""
    return [
        f'<line x1="{left}" x2="{left + 28}" y1="{baseline - 4}" y2="{baseline - 4}" '
        f'stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}"/>',
        f'<text x="{left + 36}" y="{baseline}">{html.escape(label)}</text>',
    ]


def html_page(title: str, body: str) -> str:
    """The HTML document."""
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        f"<title>{html.escape(title)}</title><style>"
        "body{font:15px/1.45 system-ui,sans-serif;max-width:900px;margin:2em auto;padding:0 1em;"
        "color:#1f2328;background:#fff}h1{font-size:1.3em}h2{font-size:1.05em;margin:1.4em 0 .3em}"
        "svg{width:100%;height:auto}table{border-collapse:collapse}"
        "td,th{padding:3px 18px 3px 0;border-bottom:1px solid #d0d7de;vertical-align:top}"
        ".figure{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}"
        "ul{padding-left:1.2em}.aside{color:#59636e;overflow-wrap:anywhere}"
        f"</style></head><body>{body}</body></html>\n"
    )


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are text; columns of figures are on the right, so that their digits stand in line."""
    figures = [
        all(_FIGURE.fullmatch(row[place]) for row in rows if place < len(row))
        for place in range(len(head))
    ]
    looks = [" class=figure" if is_figure else " align=left" for is_figure in figures]
    top = "".join(f"<th{look}>{html.escape(name)}" for name, look in zip(head, looks, strict=True))
    lines = "".join(
        "<tr>"
        + "".join(
            f"<td{look if look.endswith('figure') else ''}>{html.escape(cell)}"
            for cell, look in zip(row, looks, strict=False)
        )
        for row in rows
    )
    return f"<table><tr>{top}{lines}</table>"
