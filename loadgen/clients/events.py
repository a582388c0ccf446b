"""One server-sent event of OpenAI's streams, completions and chats alike, in our own terms."""

from __future__ import annotations

import json
from dataclasses import dataclass

from loadgen.recording import Speculation

_SHOWN_BYTES = 80


@dataclass(frozen=True, slots=True)
class Piece:
    """What an event says; None where it says nothing of it."""

    text: str = ""
    finish: str = ""
    completion_tokens: int | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    speculation: Speculation | None = None
    error: str = ""
    error_kind: str = ""


def piece_of(data: bytes) -> Piece:
    """Read an event's JSON; what is no such object is an error of the stream."""
    try:
        event = json.loads(data)
        return _piece(event)
    except (ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        told = f"{data[:_SHOWN_BYTES].decode(errors='replace').strip()!r}: {error}"
        return Piece(error=f"an event cannot be read: {told}", error_kind="bad event")


def _piece(event: dict[str, object]) -> Piece:
    error = event.get("error")
    if isinstance(error, dict):
        kind = error.get("code") or error.get("type") or ""
        if not isinstance(kind, str) or not kind:
            # A bare number would not say that it is one of HTTP.
            kind = f"error {kind}".strip() + " in the stream"
        return Piece(error=str(error.get("message")), error_kind=kind)
    text = finish = ""
    choices = event.get("choices")
    if isinstance(choices, list) and choices:
        choice = choices[0]
        delta = choice.get("delta")
        # Reasoning is part of the answer: it was decoded as all else was.
        text = (
            choice.get("text") or ""
            if delta is None
            else (delta.get("content") or delta.get("reasoning_content") or "")
        )
        finish = choice.get("finish_reason") or ""
    completion = prompt = cached = None
    usage = event.get("usage")
    if isinstance(usage, dict):
        completion, prompt = usage.get("completion_tokens"), usage.get("prompt_tokens")
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    return Piece(text, finish, completion, prompt, cached, _speculation(event.get("tandem")))


def _speculation(report: object) -> Speculation | None:
    """From the report that Tandem adds for those who ask."""
    told = report.get("speculation") if isinstance(report, dict) else None
    if not told:
        return None
    found = Speculation()
    found.add_report(
        int(told.get("steps", 0)),
        [int(count) for count in told.get("drafted", ())],
        [int(count) for count in told.get("accepted", ())],
    )
    return found
