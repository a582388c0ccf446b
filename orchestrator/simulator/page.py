"""A simulation as one HTML file: latencies, and what the cluster looked like over time."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np

from orchestrator.drawing import (
    AMBER,
    BLUE,
    GREEN,
    GREY,
    RED,
    Box,
    Curve,
    LinearScale,
    LogScale,
    axes,
    html_page,
    html_table,
    legend_line,
    line,
    svg,
)
from orchestrator.simulator.results import PERCENTILES, Results, rate_of

_WIDE = Box(860, 280, 84, 24, 40, 56)
# Curves of distributions have so many points.
_POINTS = 200
# A target beyond the slowest request is drawn when it is no further than this.
_SHOWN_WITHIN = 20.0
_EXPLAINED = (
    "<p>Busy: the share of prefill workers that read, and of decode slots that are taken. Matched "
    "ratio: the smaller of the two over the larger, 1 when neither pool idles behind the other.</p>"
)


def page(results: Results, title: str) -> str:
    """The document."""
    samples = results.outcome.samples
    queue = _timeline(
        "Requests",
        [
            ("waiting in the router", AMBER, "", [(s.at_s, float(s.queued)) for s in samples]),
            ("on workers", BLUE, "", [(s.at_s, float(s.running)) for s in samples]),
        ],
    )
    rates = _timeline("Requests finished per second", [("", GREEN, "", rate_of(samples))])
    busy = _timeline(
        "Busy share of the pools",
        [
            ("prefill workers", BLUE, "", [(s.at_s, s.prefill_busy_share) for s in samples[1:]]),
            ("decode slots", GREEN, "", [(s.at_s, s.decode_busy_share) for s in samples[1:]]),
            (
                "matched ratio",
                GREY,
                "5 4",
                [(s.at_s, s.matched_ratio) for s in samples[1:] if s.matched_ratio is not None],
            ),
        ],
    )
    pools = _timeline(
        "Workers",
        [
            ("prefill", BLUE, "", [(s.at_s, float(s.prefill_serving)) for s in samples]),
            ("decode", GREEN, "", [(s.at_s, float(s.decode_serving)) for s in samples]),
            (
                "starting or pending",
                RED,
                "5 4",
                [(s.at_s, float(s.starting + s.pending)) for s in samples],
            ),
        ],
    )
    rows = results.outcome.requests
    targets = results.cluster.policy.classes[0]
    body = "".join(
        [
            f"<h1>{html.escape(title)}</h1><p>{html.escape(results.cluster.description)}</p>",
            "<ul>",
            *(f"<li>{html.escape(text)}</li>" for text in summary_lines(results)),
            "</ul>",
            latency_table(results),
            "<h2>TTFT</h2>",
            _distribution(rows.ttft_ms, targets.name, targets.ttft_s * 1e3, "TTFT in ms"),
            "<h2>Mean ITL of a request</h2>",
            _distribution(rows.itl_ms, targets.name, targets.itl_s * 1e3, "ITL in ms"),
            "<h2>Over time</h2>",
            _EXPLAINED,
            queue,
            rates,
            busy,
            pools,
        ]
    )
    return html_page(title, body)


def summary_lines(results: Results) -> list[str]:
    """What a person wants to know first."""
    outcome, match = results.outcome, results.outcome.match
    failures = outcome.requests.failures
    lines = [
        f"{results.requests:,} requests in {outcome.seconds:,.1f} s of virtual time, "
        f"{results.finished:,} finished"
        + (", " + ", ".join(f"{n:,} {name}" for name, n in sorted(failures.items())))
        * bool(failures),
        f"{results.tokens_per_s:,.0f} tokens/s, {results.tokens_per_s_gpu:,.0f} for each GPU; "
        f"{outcome.gpu_hours:,.2f} GPU-hours",
        f"goodput {results.goodput_rps:,.2f} requests/s",
        f"idle: prefill {match.prefill_idle_share:.0%}, decode slots "
        f"{match.decode_idle_share:.0%}"
        + ("" if match.matched_ratio is None else f"; matched ratio {match.matched_ratio:.2f}"),
    ]
    if results.cluster.error_estimate is not None:
        lines.append(
            f"step times come from a profile that is off by {results.cluster.error_estimate:.0%} "
            "on measurements left out of its fit"
        )
    waited = [f"{name} {s:,.1f} s" for name, s in match.waited_s.items() if s > 0.05]
    if waited:
        lines.append(f"the queue's first waited for {', '.join(waited)}")
    if outcome.requests.retries:
        lines.append(f"{outcome.requests.retries:,} attempts failed and were made again")
    for one in results.classes:
        if one.requests:
            lines.append(
                f"class {one.name}: {one.good / one.requests:.1%} met both targets (TTFT "
                f"{one.ttft_target_ms:g} ms: {one.met_ttft / one.requests:.1%}, ITL "
                f"{one.itl_target_ms:g} ms: {one.met_itl / one.requests:.1%})"
            )
    return lines


def latency_table(results: Results) -> str:
    """Percentiles as an HTML table."""
    names = {"ttft_ms": "TTFT", "itl_ms": "ITL", "e2e_ms": "end to end", "queue_ms": "queue"}
    return html_table(
        ["ms", *(f"p{share}" for share in PERCENTILES), "mean"],
        [
            [
                names[name],
                *(f"{found[f'p{share}']:,.1f}" for share in PERCENTILES),
                f"{found['mean']:,.1f}",
            ]
            for name, found in results.latencies.items()
        ],
    )


def _timeline(label: str, curves: Sequence[tuple[str, str, str, Curve]]) -> str:
    points = [point for _, _, _, curve in curves for point in curve]
    if not points:
        return ""
    x = LinearScale.up_to(max(at for at, _ in points), *_WIDE.span_x)
    y = LinearScale.up_to(max(value for _, value in points), *_WIDE.span_y)
    parts = axes(_WIDE, x, y, "seconds", label)
    along = float(_WIDE.left)
    for name, colour, dashes, curve in curves:
        parts += line(curve, x, y, colour, dashes)
        if name:
            parts += legend_line(along, 24, colour, dashes, name)
            along += 60 + 8 * len(name)
    return svg(_WIDE, f"{label} over time", parts)


def _distribution(values: Sequence[float], name: str, target: float, label: str) -> str:
    """The share of requests that were at least as quick, over time on a logarithmic axis."""
    column = np.sort(np.asarray(values, np.float64))
    column = column[column > 0.0]
    if not len(column):
        return "<p>No request has one.</p>"
    shares = np.linspace(0.0, 1.0, _POINTS)
    quick = np.quantile(column, shares)
    ends = [float(quick[0]), float(quick[-1])]
    if ends[0] / _SHOWN_WITHIN < target < ends[1] * _SHOWN_WITHIN:
        ends = [min(ends[0], target), max(ends[1], target)]
    x = LogScale.around(ends, *_WIDE.span_x)
    y = LinearScale(0.0, 1.0, *_WIDE.span_y)
    parts = axes(_WIDE, x, y, label, "share of requests")
    curve = list(zip(quick.tolist(), shares.tolist(), strict=True))
    parts += line(curve, x, y, BLUE)
    if x.low < target < x.high:
        parts += line([(target, 0.0), (target, 1.0)], x, y, RED, "2 3")
        at, low = x.at(target), _WIDE.height - _WIDE.bottom - 8
        # To the left of the line where there is no room to its right.
        is_left = at > _WIDE.width * 0.75
        shift, anchor = (-5, "end") if is_left else (5, "start")
        parts.append(
            f'<text x="{at + shift:.1f}" y="{low}" text-anchor="{anchor}">'
            f"{html.escape(f'target of {name}: {target:g} ms')}</text>"
        )
    return svg(_WIDE, f"distribution of {label}", parts)
