"""Requests of a trace as the commands of the simulator ask for them: one error for people."""

from __future__ import annotations

from pathlib import Path

from loadgen.errors import LoadError
from loadgen.traces.reading import FORMATS, Format
from loadgen.traces.reading import read_trace as read
from loadgen.traces.request import TraceRequest
from loadgen.traces.shaping import at_rate, sped_up
from orchestrator.errors import UsageError

__all__ = ["FORMATS", "Format", "TraceRequest", "at_rate", "read_trace", "sped_up"]


def read_trace(
    path: Path,
    form: Format = "auto",
    limit: int | None = None,
    answer_tokens: int | None = None,
) -> list[TraceRequest]:
    """As `loadgen.traces.reading.read_trace`. Raises UsageError, which names the line."""
    try:
        return read(path, form, limit, answer_tokens)
    except LoadError as error:
        raise UsageError(f"--{error.message}", error.hint) from error
