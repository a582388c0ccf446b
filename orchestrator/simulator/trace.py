"""Requests of a trace, with the moments at which they arrive."""

from __future__ import annotations

import csv
import itertools
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Literal

from orchestrator.errors import UsageError
from orchestrator.simulator.prefixes import TRACE_BLOCK_TOKENS

Format = Literal["auto", "mooncake", "azure", "burstgpt"]
FORMATS: tuple[Format, ...] = ("auto", "mooncake", "azure", "burstgpt")
# CSV columns: arrival, tokens of the prompt, tokens of the answer.
_COLUMNS: dict[Format, tuple[str, str, str]] = {
    "azure": ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    "burstgpt": ("Timestamp", "Request tokens", "Response tokens"),
}


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request. `hash_ids` name the prefixes of 1, 2, ... blocks of 512 tokens."""

    at_s: float
    prompt_tokens: int
    answer_tokens: int
    hash_ids: Sequence[int] = ()
    class_name: str = ""

    @property
    def block_names(self) -> tuple[int, ...]:
        """Names of the prefixes of 0, 1, ... full blocks; 0 is the empty one's."""
        full = self.prompt_tokens // TRACE_BLOCK_TOKENS
        return (0, *(identity + 1 for identity in self.hash_ids[:full]))


def read_trace(path: Path, form: Format = "auto", limit: int | None = None) -> list[TraceRequest]:
    """Requests in order of arrival, the first at 0 s; those without a prompt or answer left out.

    Raises UsageError, which names the line.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            lines = itertools.chain([first := file.readline()], file)
            if form == "auto":
                form = _guess(path, first)
            rows = _mooncake(path, lines) if form == "mooncake" else _csv(path, lines, form)
            found = list(itertools.islice((row for row in rows if _is_whole(row)), limit))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--trace {path}: cannot be read: {error}") from error
    if not found:
        raise UsageError(f"--trace {path}: has no request with a prompt and an answer")
    found.sort(key=lambda request: request.at_s)
    first_s = found[0].at_s
    return [replace(request, at_s=request.at_s - first_s) for request in found]


def sped_up(requests: list[TraceRequest], factor: float) -> list[TraceRequest]:
    """The same requests, `factor` times as fast."""
    return [replace(request, at_s=request.at_s / factor) for request in requests]


def at_rate(requests: list[TraceRequest], rate_rps: float, seed: int) -> list[TraceRequest]:
    """The same requests in the same order, as a Poisson process of that rate."""
    rng, now_s = random.Random(seed), 0.0
    out = []
    for request in requests:
        out.append(replace(request, at_s=now_s))
        now_s += rng.expovariate(rate_rps)
    return out


def _is_whole(request: TraceRequest) -> bool:
    return request.prompt_tokens > 0 and request.answer_tokens > 0


def _guess(path: Path, first: str) -> Format:
    if first.lstrip().startswith("{"):
        return "mooncake"
    names = set(next(csv.reader([first]), ()))
    for form, columns in _COLUMNS.items():
        if names.issuperset(columns):
            return form
    expected = "; or ".join(", ".join(columns) for columns in _COLUMNS.values())
    raise UsageError(
        f"--trace {path}: neither JSON lines nor columns {expected}",
        "name the format with --format",
    )


def _mooncake(path: Path, lines: Iterator[str]) -> Iterator[TraceRequest]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            yield TraceRequest(
                float(row["timestamp"]) / 1e3,
                int(row["input_length"]),
                int(row["output_length"]),
                tuple(row.get("hash_ids", ())),
                str(row.get("class", "")),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"--trace {path}, line {number}: expected an object with timestamp, input_length "
                f"and output_length: {error!r}"
            ) from error


def _csv(path: Path, lines: Iterator[str], form: Format) -> Iterator[TraceRequest]:
    arrival, prompt, answer = _COLUMNS[form]
    rows = csv.DictReader(lines)
    for row in rows:
        try:
            yield TraceRequest(_seconds(row[arrival]), int(row[prompt]), int(row[answer]))
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"--trace {path}, line {rows.line_num}: expected {arrival}, {prompt} and {answer}: "
                f"{error!r}"
            ) from error


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        # Azure's traces have seven digits of a second, Python reads six.
        head, point, digits = text.partition(".")
        moment = datetime.fromisoformat(head if not point else f"{head}.{digits[:6]:0<6}")
        return moment.timestamp()
