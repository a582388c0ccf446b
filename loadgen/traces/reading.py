"""Reads the public trace formats: Mooncake, Azure 2023 and 2024, BurstGPT, AIBrix."""

from __future__ import annotations

import csv
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Literal

from loadgen.errors import LoadError
from loadgen.traces.request import TraceRequest

Format = Literal["auto", "mooncake", "azure", "burstgpt", "aibrix"]
FORMATS: tuple[Format, ...] = ("auto", "mooncake", "azure", "burstgpt", "aibrix")
# CSV columns: arrival, tokens of the prompt, tokens of the answer. Azure's are the same in both
# years.
_COLUMNS: dict[Format, tuple[str, str, str]] = {
    "azure": ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    "burstgpt": ("Timestamp", "Request tokens", "Response tokens"),
}
_SESSION_COLUMN = "Session ID"
# For prompts that come without their count: English in the usual vocabularies.
_CHARACTERS_PER_TOKEN = 4


def read_trace(
    path: Path,
    form: Format = "auto",
    limit: int | None = None,
    answer_tokens: int | None = None,
    to_s: float | None = None,
) -> list[TraceRequest]:
    """Requests in order of arrival, the first at 0 s; those without a prompt or answer left out.

    Args:
        limit: only so many, the first of the file.
        answer_tokens: of requests whose answer the trace does not count.
        to_s: stop at the first that comes so much later than the first of the file; published
            traces are in order, and some have tens of millions of lines.

    Raises:
        LoadError: the file cannot be read; the message names the line.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            lines = itertools.chain([first := file.readline()], file)
            if not first:
                raise LoadError(f"trace {path}: is empty")
            if form == "auto":
                form = _guess(path, first)
            rows = _rows(path, lines, form, answer_tokens)
            whole = (row for row in rows if _is_whole(row))
            found = list(itertools.islice(_until(whole, to_s), limit))
    except OSError as error:
        raise LoadError(f"trace {path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise LoadError(f"trace {path}: cannot be read: it is no UTF-8 text") from error
    if not found:
        raise LoadError(f"trace {path}: has no request with a prompt and an answer")
    found.sort(key=lambda request: request.at_s)
    first_s = found[0].at_s
    return [replace(request, at_s=request.at_s - first_s) for request in found]


def _until(requests: Iterator[TraceRequest], to_s: float | None) -> Iterator[TraceRequest]:
    end_s = math.inf
    for place, request in enumerate(requests):
        if place == 0 and to_s is not None:
            end_s = request.at_s + to_s
        if request.at_s > end_s:
            return
        yield request


def _rows(
    path: Path, lines: Iterator[str], form: Format, answer_tokens: int | None
) -> Iterator[TraceRequest]:
    if form == "mooncake":
        return _mooncake(path, lines)
    if form == "aibrix":
        return _aibrix(path, lines, answer_tokens)
    return _csv(path, lines, form)


def _is_whole(request: TraceRequest) -> bool:
    return request.prompt_tokens > 0 and request.answer_tokens > 0


def _guess(path: Path, first: str) -> Format:
    if first.lstrip().startswith("{"):
        return "aibrix" if '"requests"' in first else "mooncake"
    names = set(next(csv.reader([first]), ()))
    for form, columns in _COLUMNS.items():
        if names.issuperset(columns):
            return form
    expected = "; or ".join(", ".join(columns) for columns in _COLUMNS.values())
    raise LoadError(
        f"trace {path}: neither JSON lines nor columns {expected}",
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
            raise LoadError(
                f"trace {path}, line {number}: expected an object with timestamp, input_length "
                f"and output_length: {error!r}"
            ) from error


def _aibrix(path: Path, lines: Iterator[str], answer_tokens: int | None) -> Iterator[TraceRequest]:
    """Lines of requests that come at the same moment, in ms, most with their prompts."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            at_s = float(row["timestamp"]) / 1e3
            for request in row["requests"]:
                text = str(request.get("prompt") or "")
                counted = request.get("prompt_length")
                wanted = request.get("output_length")
                if wanted is None:
                    wanted = answer_tokens
                if wanted is None:
                    raise LoadError(
                        f"trace {path}, line {number}: output_length is null",
                        "say how long such answers are: --osl 256",
                    )
                session = request.get("session_id")
                yield TraceRequest(
                    at_s,
                    len(text) // _CHARACTERS_PER_TOKEN + 1 if counted is None else int(counted),
                    int(wanted),
                    session="" if session is None else str(session),
                    text=text,
                )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LoadError(
                f"trace {path}, line {number}: expected an object with timestamp and requests, "
                f"each with prompt_length and output_length: {error!r}"
            ) from error


def _csv(path: Path, lines: Iterator[str], form: Format) -> Iterator[TraceRequest]:
    arrival, prompt, answer = _COLUMNS[form]
    rows = csv.DictReader(lines)
    for row in rows:
        try:
            yield TraceRequest(
                _seconds(row[arrival]),
                int(row[prompt]),
                int(row[answer]),
                session=row.get(_SESSION_COLUMN) or "",
            )
        except (ValueError, KeyError, TypeError) as error:
            raise LoadError(
                f"trace {path}, line {rows.line_num}: expected {arrival}, {prompt} and {answer}: "
                f"{error!r}"
            ) from error


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        # Azure's traces have seven digits of a second, and those of 2024 a zone; Python reads six.
        head, point, rest = text.partition(".")
        if not point:
            return datetime.fromisoformat(head).timestamp()
        digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
        zone = rest[len(digits) :]
        return datetime.fromisoformat(f"{head}.{digits[:6]:0<6}{zone}").timestamp()
