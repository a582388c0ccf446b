"""A simulation as one HTML file: latencies, and what the cluster looked like over time."""

from __future__ import annotations

import html

from orchestrator.charts import Target, distribution, timeline
from orchestrator.drawing import AMBER, BLUE, GREEN, GREY, RED, html_page, html_table
from orchestrator.simulator.results import PERCENTILES, Results, rate_of

_EXPLAINED = (
    "<p>Busy: the share of prefill workers that read, and of decode slots that are taken. Matched "
    "ratio: the smaller of the two over the larger, 1 when neither pool idles behind the other.</p>"
)


def page(results: Results, title: str) -> str:
    """The document."""
    samples = results.outcome.samples
    queue = timeline(
        "Requests",
        [
            ("waiting in the router", AMBER, "", [(s.at_s, float(s.queued)) for s in samples]),
            ("on workers", BLUE, "", [(s.at_s, float(s.running)) for s in samples]),
        ],
    )
    rates = timeline("Requests finished per second", [("", GREEN, "", rate_of(samples))])
    busy = timeline(
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
    pools = timeline(
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
    name = f"target of {targets.name}"
    body = "".join(
        [
            f"<h1>{html.escape(title)}</h1><p>{html.escape(results.cluster.description)}</p>",
            "<ul>",
            *(f"<li>{html.escape(text)}</li>" for text in summary_lines(results)),
            "</ul>",
            latency_table(results),
            "<h2>TTFT</h2>",
            distribution(rows.ttft_ms, Target(name, targets.ttft_s * 1e3), "TTFT in ms"),
            "<h2>Mean ITL of a request</h2>",
            distribution(rows.itl_ms, Target(name, targets.itl_s * 1e3), "ITL in ms"),
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
