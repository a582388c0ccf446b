"""What is to be measured, checked before anything starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import UsageError
from workers.parallel.layout import ParallelLayout

_SIZES = ("kvp", "tpa", "tpf", "ep")
_MOST_DRAFT_TOKENS = 7


@dataclass(frozen=True, slots=True)
class Settings:
    """One run of `tandem bench helix`."""

    model: Path
    layouts: tuple[ParallelLayout, ...]
    batch: int
    contexts: tuple[int, ...]
    draft_tokens: tuple[int, ...]
    steps: int
    rounds: int
    threads: int


def parse_layouts(text: str) -> tuple[ParallelLayout, ...]:
    """`kvp=2,ep=2;tpa=2,tpf=2` as layouts; sizes left out are 1.

    Raises:
        UsageError: naming the part that is no layout.
    """
    return tuple(_layout(part) for part in text.split(";") if part.strip())


def parse_numbers(flag: str, text: str, least: int, most: int) -> tuple[int, ...]:
    """`1,8` as numbers from `least` to `most`. Raises UsageError naming the flag."""
    numbers = []
    for word in text.split(","):
        if not word.strip().isdecimal() or not least <= int(word) <= most:
            raise UsageError(f"{flag}: {word.strip()!r} is no whole number from {least} to {most}")
        numbers.append(int(word))
    return tuple(numbers)


def parse_draft_tokens(text: str) -> tuple[int, ...]:
    """`0,3` as draft lengths."""
    return parse_numbers("--draft-tokens", text, 0, _MOST_DRAFT_TOKENS)


def name_of(layout: ParallelLayout) -> str:
    """A layout for people: the sizes that are not 1."""
    sizes = [f"{name}={getattr(layout, name)}" for name in _SIZES if getattr(layout, name) > 1]
    return ",".join(sizes) or "1 rank"


def _layout(text: str) -> ParallelLayout:
    sizes: dict[str, int] = {}
    words: Sequence[str] = text.strip().split(",")
    for word in words:
        name, equals, value = word.strip().partition("=")
        if name not in _SIZES or not equals or not value.isdecimal():
            raise UsageError(
                f"--layouts: {word.strip()!r} is no size", f"use {', '.join(_SIZES)}, as in kvp=2"
            )
        sizes[name] = int(value)
    try:
        return ParallelLayout(**sizes)
    except ValueError as error:
        raise UsageError(f"--layouts: {text.strip()}: {error}") from error
