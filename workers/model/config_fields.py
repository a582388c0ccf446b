"""Typed reading of a JSON object, with errors that name field, value and fix.

Exists because config.json is written by people and by many tools: a wrong type found here costs
one line, found later it is a shape error deep in a layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from workers.model.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Fields:
    """The object of one config.json; `origin` is the path shown in messages."""

    values: Mapping[str, object]
    origin: str

    def refuse(self, name: str, reason: str, fix: str) -> CheckpointError:
        """The error for field `name`; the caller raises it."""
        found = repr(self.values[name]) if name in self.values else "missing"
        return CheckpointError(f"{self.origin}: field '{name}' is {found}: {reason}. {fix}")

    def has(self, name: str) -> bool:
        """True if the field is there and not null."""
        return self.values.get(name) is not None

    def integer(self, name: str, default: int | None = None, *, minimum: int = 1) -> int:
        """A whole number >= minimum; without a default the field is required."""
        value = self.values.get(name)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise self.refuse(
                name, f"expected a whole number >= {minimum}", f"Set '{name}' in config.json."
            )
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number; without a default the field is required."""
        value = self.values.get(name)
        if value is None and default is not None:
            return default
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise self.refuse(name, "expected a finite number", f"Set '{name}' in config.json.")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """true or false."""
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.refuse(name, "expected true or false", f"Correct '{name}' in config.json.")
        return value

    def choice(self, name: str, default: str, allowed: tuple[str, ...]) -> str:
        """One of the allowed words."""
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, str) or value not in allowed:
            raise self.refuse(
                name,
                f"supported: {', '.join(allowed)}",
                "This engine cannot run such a model; use another checkpoint.",
            )
        return value

    def words(self, name: str) -> tuple[str, ...]:
        """A list of strings; required."""
        value = self.values.get(name)
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise self.refuse(name, "expected a list of strings", f"Correct '{name}' in config.json.")

    def token_ids(self, name: str) -> tuple[int, ...]:
        """A token id, a list of them, or nothing."""
        value = self.values.get(name)
        items = value if isinstance(value, list) else [] if value is None else [value]
        ids = tuple(item for item in items if isinstance(item, int) and not isinstance(item, bool))
        if len(ids) != len(items):
            raise self.refuse(
                name, "expected a token id or a list of token ids", f"Correct '{name}'."
            )
        return ids
