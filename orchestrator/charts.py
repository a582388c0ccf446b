"""The charts of reports: something over time, and how latencies are distributed."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from orchestrator.drawing import (
    BLUE,
    RED,
    Box,
    Curve,
    LinearScale,
    LogScale,
    axes,
    legend_line,
    line,
    svg,
)

# Name in the legend ("" for none), colour, dashes, and what is drawn.
NamedCurve: TypeAlias = tuple[str, str, str, Curve]
NamedValues: TypeAlias = tuple[str, str, str, Sequence[float]]

_WIDE = Box(860, 280, 84, 24, 40, 56)
# Curves of distributions have so many points.
_POINTS = 200
# A target beyond the slowest request is drawn when it is no further than this.
_SHOWN_WITHIN = 20.0


@dataclass(frozen=True, slots=True)
class Target:
    """A line to draw: what it is called, and where it is."""

    name: str
    value_ms: float


def timeline(label: str, curves: Sequence[NamedCurve], until_s: float = 0.0) -> str:
    """Curves over seconds, to `until_s` at least so that several stand in line; nothing when none
    has a point."""
    points = [point for _, _, _, curve in curves for point in curve]
    if not points:
        return ""
    x = LinearScale.up_to(max(until_s, *(at for at, _ in points)), *_WIDE.span_x)
    is_count = all(float(value).is_integer() for _, value in points)
    y = LinearScale.up_to(max(value for _, value in points), *_WIDE.span_y, float(is_count))
    parts = axes(_WIDE, x, y, "seconds", label)
    drawn = [curve for curve in curves if len(curve[3])]
    for _, colour, dashes, curve in drawn:
        parts += line(curve, x, y, colour, dashes)
    parts += _legend([(name, colour, dashes) for name, colour, dashes, _ in drawn])
    return svg(_WIDE, f"{label} over time", parts)


def distribution(values: Sequence[float], target: Target, label: str) -> str:
    """The share of requests that were at least as quick, over time on a logarithmic axis."""
    return distributions([("", BLUE, "", values)], target, label)


def distributions(sets: Sequence[NamedValues], target: Target | None, label: str) -> str:
    """As `distribution`, for several sets of requests in one picture."""
    shares = np.linspace(0.0, 1.0, _POINTS)
    curves: list[NamedCurve] = []
    for name, colour, dashes, values in sets:
        column = np.asarray(values, np.float64)
        column = column[column > 0.0]
        if len(column):
            quick = np.quantile(column, shares)
            curves.append(
                (name, colour, dashes, list(zip(quick.tolist(), shares.tolist(), strict=True)))
            )
    if not curves:
        return "<p>No request has one.</p>"
    ends = [end for _, _, _, curve in curves for end in (curve[0][0], curve[-1][0])]
    if target is not None and (
        min(ends) / _SHOWN_WITHIN < target.value_ms < max(ends) * _SHOWN_WITHIN
    ):
        ends.append(target.value_ms)
    x = LogScale.around(ends, *_WIDE.span_x)
    y = LinearScale(0.0, 1.0, *_WIDE.span_y)
    parts = axes(_WIDE, x, y, label, "share of requests")
    for _, colour, dashes, curve in curves:
        parts += line(curve, x, y, colour, dashes)
    parts += _legend([(name, colour, dashes) for name, colour, dashes, _ in curves])
    if target is not None and x.low < target.value_ms < x.high:
        parts += _target_line(target, x, y)
    return svg(_WIDE, f"distribution of {label}", parts)


def _target_line(target: Target, x: LogScale, y: LinearScale) -> list[str]:
    at, low = x.at(target.value_ms), _WIDE.height - _WIDE.bottom - 8
    # To the left of the line where there is no room to its right.
    is_left = at > _WIDE.width * 0.75
    shift, anchor = (-5, "end") if is_left else (5, "start")
    said = html.escape(f"{target.name}: {target.value_ms:g} ms")
    return [
        *line([(target.value_ms, 0.0), (target.value_ms, 1.0)], x, y, RED, "2 3"),
        f'<text x="{at + shift:.1f}" y="{low}" text-anchor="{anchor}">{said}</text>',
    ]


def _legend(entries: Sequence[tuple[str, str, str]]) -> list[str]:
    parts, along = [], float(_WIDE.left)
    for name, colour, dashes in entries:
        if name:
            parts += legend_line(along, 24, colour, dashes, name)
            along += 60 + 8 * len(name)
    return parts
