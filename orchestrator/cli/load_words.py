"""A run of a load in words and rows: what the terminal and the page both say."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TypeAlias, cast

from loadgen.figures import PERCENTILES

CLOSED_LOOP = "closed loop"

Document: TypeAlias = Mapping[str, object]
Row: TypeAlias = tuple[str, ...]

LATENCIES = {
    "ttft_ms": "TTFT",
    "itl_ms": "ITL, mean of a request",
    "gap_ms": "ITL, between chunks",
    "e2e_ms": "end to end",
    "queue_ms": "queue",
}
LATENCY_HEAD: Row = ("ms", *(f"p{share}" for share in PERCENTILES), "mean")


def number(document: Document, *path: str) -> float | None:
    """A figure of a report; None where it has none."""
    value: object = document
    for name in path:
        if not isinstance(value, Mapping):
            return None
        value = value.get(name)
    return float(value) if isinstance(value, (int, float)) else None


def table(document: Document, name: str) -> Mapping[str, object]:
    """An object of a report; empty where it has none."""
    value = document.get(name)
    return cast(Mapping[str, object], value) if isinstance(value, Mapping) else {}


def failed_requests(document: Document) -> float | None:
    """Of all reasons together; None where a report does not say."""
    found = document.get("failed")
    if not isinstance(found, Mapping):
        return None
    return float(sum(count for count in found.values() if isinstance(count, int)))


def texts(document: Document, name: str) -> list[str]:
    """A list of a report."""
    value = document.get(name)
    return [str(one) for one in value] if isinstance(value, Sequence) else []


def shown(value: float | None, digits: int = 1) -> str:
    """A figure for people."""
    return "-" if value is None else f"{value:,.{digits}f}"


def latency_rows(document: Document) -> list[Row]:
    """One row for each latency that the report has."""
    rows = []
    for name, label in LATENCIES.items():
        found = table(document, name)
        if found:
            columns = (*(f"p{share}" for share in PERCENTILES), "mean")
            rows.append((label, *(shown(number(found, column)) for column in columns)))
    return rows


def what_was_sent(document: Document) -> str:
    """When, to what, and with which flags; empty for a report that does not say."""
    target, load = table(document, "target"), table(document, "load")
    if not load:
        return ""
    flags = " ".join(
        f"--{name.replace('_', '-')} {value}"
        for name, value in load.items()
        if value is not None and value != CLOSED_LOOP
    )
    began = f"{document['began']}: " if document.get("began") else ""
    to = f"{target.get('model', '')} at {target.get('address', '')}"
    return f"{began}prompts of {document.get('prompts', '')} to {to}: {flags}"


def summary_lines(document: Document) -> list[str]:
    """What a person wants to know first."""
    failed = table(document, "failed")
    lines = [
        f"{shown(number(document, 'requests'), 0)} requests in "
        f"{shown(number(document, 'seconds'))} s, "
        f"{shown(number(document, 'finished'), 0)} finished"
        + "".join(f", {count} {reason}" for reason, count in failed.items())
        + (f", {document['unfinished']} cut off" if document.get("unfinished") else ""),
        _throughput(document),
        _goodput(document),
    ]
    client = table(document, "client")
    if client:
        lines.append(
            f"at most {shown(number(client, 'most_open'), 0)} open at once; the client sent "
            f"{shown(number(client, 'late_ms', 'p99'))} ms late (p99)"
        )
    hits = number(document, "prefix_hit_share")
    if hits is not None:
        lines.append(f"{hits:.1%} of prompt tokens came from a prefix cache")
    accepted = table(document, "acceptance")
    if accepted:
        conditional = accepted.get("conditional")
        rates = [f"{rate:.0%}" for rate in conditional] if isinstance(conditional, list) else []
        lines.append(
            f"acceptance length {shown(number(accepted, 'length'), 2)} "
            f"(by {accepted.get('measured')})" + (f": {', '.join(rates)}" if rates else "")
        )
    return lines


def _throughput(document: Document) -> str:
    text = (
        f"{shown(number(document, 'requests_per_s'), 2)} requests/s, "
        f"{shown(number(document, 'tokens_per_s'), 0)} tokens/s"
    )
    each = number(document, "tokens_per_s_gpu")
    return text if each is None else f"{text}, {shown(each, 0)} for each GPU"


def _goodput(document: Document) -> str:
    share = number(document, "goodput_share")
    targets = table(document, "targets")
    text = f"goodput {shown(number(document, 'goodput_rps'), 2)} requests/s"
    if share is not None:
        text += f": {share:.1%} met both targets"
    if targets:
        ttft, itl = number(targets, "ttft_ms"), number(targets, "itl_ms")
        text += f" (TTFT {shown(ttft, 0)} ms, ITL {shown(itl, 0)} ms)"
    return text


def series(document: Document, *path: str, of: str = "timeline") -> list[tuple[float, float]]:
    """A column of rows over time, where they have it."""
    rows = document.get(of)
    if not isinstance(rows, list):
        return []
    pairs = ((number(row, "at_s"), number(row, *path)) for row in rows)
    return [(at_s, value) for at_s, value in pairs if at_s is not None and value is not None]


def rates(document: Document, name: str) -> list[tuple[float, float]]:
    """How quickly a column of the timeline grew, at the later of each two rows."""
    points = series(document, name)
    return [
        (at, (value - before) / (at - since))
        for (since, before), (at, value) in itertools.pairwise(points)
        if at > since
    ]


def values(document: Document, name: str) -> list[float]:
    """A distribution of the report."""
    found = table(document, "distributions").get(name)
    return [float(one) for one in found] if isinstance(found, list) else []
