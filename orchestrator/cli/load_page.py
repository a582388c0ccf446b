"""A run of a load, or two beside each other, as one HTML file that needs nothing from elsewhere."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

from orchestrator.charts import NamedCurve, Target, distributions, timeline
from orchestrator.cli.load_words import (
    LATENCY_HEAD,
    Document,
    latency_rows,
    number,
    rates,
    series,
    summary_lines,
    table,
    texts,
    values,
    what_was_sent,
)
from orchestrator.drawing import AMBER, BLUE, GREEN, GREY, RED, html_page, html_table

_DASHES = "5 4"  # of the first of two runs


def page(document: Document, title: str) -> str:
    """One run."""
    targets = table(document, "targets")
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p class=aside>{html.escape(what_was_sent(document))}</p>",
        *(f"<p><b>Note:</b> {html.escape(text)}.</p>" for text in texts(document, "warnings")),
        "<ul>",
        *(f"<li>{html.escape(text)}</li>" for text in summary_lines(document)),
        "</ul>",
        html_table(LATENCY_HEAD, latency_rows(document)),
        _errors(document),
        "<h2>TTFT</h2>",
        distributions(
            [("", BLUE, "", values(document, "ttft_ms"))], _target(targets, "ttft_ms"), "TTFT in ms"
        ),
        "<h2>Mean ITL of a request</h2>",
        distributions(
            [("", BLUE, "", values(document, "itl_ms"))], _target(targets, "itl_ms"), "ITL in ms"
        ),
        "<h2>Over time</h2>",
        _latencies(document, "ttft_ms", "TTFT in ms"),
        _latencies(document, "itl_ms", "Mean ITL in ms"),
        timeline(
            "Requests",
            [
                ("open", BLUE, "", series(document, "open")),
                ("waiting in the router", AMBER, "", series(document, "queued")),
                ("on workers", GREEN, "", series(document, "running")),
            ],
        ),
        timeline(
            "Requests per second",
            [
                ("sent", GREY, _DASHES, rates(document, "sent")),
                ("finished", GREEN, "", rates(document, "finished")),
                ("failed", RED, "", _if_any(rates(document, "failed"))),
            ],
        ),
        timeline("Tokens per second", [("", BLUE, "", rates(document, "tokens"))]),
        timeline(
            "Workers",
            [
                ("prefill", BLUE, "", series(document, "prefill_serving")),
                ("decode", GREEN, _DASHES, series(document, "decode_serving")),
            ],
        ),
        timeline(
            "Busy share, last minute",
            [
                ("prefill workers", BLUE, "", series(document, "prefill_busy_share")),
                ("decode slots", GREEN, "", series(document, "decode_busy_share")),
                ("matched ratio", GREY, _DASHES, series(document, "matched_ratio")),
            ],
        ),
    ]
    return html_page(title, "".join(body))


def comparison_page(
    names: tuple[str, str],
    documents: tuple[Document, Document],
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
) -> str:
    """Two runs; the first is dashed and grey."""
    title = f"{names[0]} and {names[1]}"
    looks = tuple(zip(names, (GREY, BLUE), (_DASHES, ""), documents, strict=True))
    targets = table(documents[1], "targets")

    def spread(name: str, label: str) -> str:
        sets = [(who, colour, dash, values(one, name)) for who, colour, dash, one in looks]
        return distributions(sets, _target(targets, name), label)

    def course(label: str, name: str, growing: bool = False) -> str:
        curves: list[NamedCurve] = [
            (who, colour, dash, rates(one, name) if growing else series(one, name))
            for who, colour, dash, one in looks
        ]
        return timeline(label, curves)

    body = [
        f"<h1>{html.escape(title)}</h1>",
        *(
            f"<p class=aside>{html.escape(f'{name}: {told}')}</p>"
            for name, one in zip(names, documents, strict=True)
            if (told := what_was_sent(one))
        ),
        html_table(head, rows),
        "<h2>TTFT</h2>",
        spread("ttft_ms", "TTFT in ms"),
        "<h2>Mean ITL of a request</h2>",
        spread("itl_ms", "ITL in ms"),
        "<h2>Over time</h2>",
        course("Requests waiting in the router", "queued"),
        course("Requests finished per second", "finished", growing=True),
        course("Prefill workers", "prefill_serving"),
        course("Decode workers", "decode_serving"),
    ]
    return html_page(title, "".join(body))


def _target(targets: Mapping[str, object], name: str) -> Target | None:
    value_ms = number(targets, name)
    return None if value_ms is None else Target("target", value_ms)


def _latencies(document: Document, name: str, label: str) -> str:
    """By when requests were meant to be sent, with the target where it is near."""
    curves: list[NamedCurve] = [
        (share, colour, "", series(document, name, share, of="latencies_over_time"))
        for share, colour in (("p50", BLUE), ("p99", AMBER))
    ]
    points = [point for _, _, _, curve in curves for point in curve]
    target_ms = number(document, "targets", name)
    if points and target_ms is not None and target_ms < 2.0 * max(value for _, value in points):
        ends = (min(at for at, _ in points), max(at for at, _ in points))
        curves.append(("target", RED, "2 3", [(at, target_ms) for at in ends]))
    return timeline(label, curves, _end_s(document))


def _end_s(document: Document) -> float:
    """Of the run, so that latencies by when requests came stand below what happened then."""
    return max((at for at, _ in series(document, "open")), default=0.0)


def _errors(document: Document) -> str:
    failed, details = table(document, "failed"), table(document, "first_errors")
    if not failed:
        return ""
    rows = [(reason, str(count), str(details.get(reason, ""))) for reason, count in failed.items()]
    return "<h2>Failures</h2>" + html_table(("reason", "requests", "the first said"), rows)


def _if_any(curve: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return curve if any(value for _, value in curve) else []
