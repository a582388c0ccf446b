"""Lengths of prompts and answers from a request trace in one of the public formats."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

from workers.perf.errors import PerfError

# Azure LLM traces and BurstGPT.
_COLUMNS = (("ContextTokens", "GeneratedTokens"), ("Request tokens", "Response tokens"))


@dataclass(frozen=True, slots=True)
class TraceLengths:
    """Tokens of each request's prompt and answer, in order."""

    isl: list[int]
    osl: list[int]


def read_lengths(path: Path) -> TraceLengths:
    """Read Mooncake's JSON lines, or the CSV of Azure's traces or BurstGPT.

    Requests without a prompt or an answer (failures) are left out.

    Raises:
        PerfError: the file cannot be read, or has neither format.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise PerfError(f"trace {path}: cannot be read: {error}") from error
    lengths = _jsonl(path, text) if text.lstrip().startswith("{") else _csv(path, text)
    pairs = [
        (prompt, answer)
        for prompt, answer in zip(lengths.isl, lengths.osl, strict=True)
        if prompt > 0 and answer > 0
    ]
    if not pairs:
        raise PerfError(f"trace {path}: has no request with a prompt and an answer")
    return TraceLengths([prompt for prompt, _ in pairs], [answer for _, answer in pairs])


def _jsonl(path: Path, text: str) -> TraceLengths:
    isl, osl = [], []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            request = json.loads(line)
            isl.append(int(request["input_length"]))
            osl.append(int(request["output_length"]))
        except (ValueError, KeyError, TypeError) as error:
            raise PerfError(
                f"trace {path}, line {number}: expected an object with input_length and "
                f"output_length: {error}"
            ) from error
    return TraceLengths(isl, osl)


def _csv(path: Path, text: str) -> TraceLengths:
    rows = csv.DictReader(text.splitlines())
    names = rows.fieldnames or []
    for prompt, answer in _COLUMNS:
        if prompt in names and answer in names:
            try:
                pairs = [(int(row[prompt]), int(row[answer])) for row in rows]
            except (ValueError, TypeError) as error:
                raise PerfError(
                    f"trace {path}, line {rows.line_num}: {prompt} and {answer} must be whole "
                    f"numbers: {error}"
                ) from error
            return TraceLengths([pair[0] for pair in pairs], [pair[1] for pair in pairs])
    raise PerfError(
        f"trace {path}: found columns {', '.join(names) or 'none'}; expected "
        + " or ".join(f"{prompt} and {answer}" for prompt, answer in _COLUMNS)
    )
