"""Typed reading of a config.json's object.

The engine has a reader of its own with its own errors; this one stands apart because whoever plans
must not import what needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from workers.perf.errors import PerfError


@dataclass(frozen=True, slots=True)
class Fields:
    """The object; `origin` is shown in messages."""

    values: Mapping[str, object]
    origin: str

    def refuse(self, name: str, reason: str, fix: str) -> PerfError:
        """The error for field `name`; the caller raises it."""
        found = repr(self.values[name]) if name in self.values else "missing"
        return PerfError(f"{self.origin}: field '{name}' is {found}: {reason}. {fix}")

    def has(self, name: str) -> bool:
        """True if the field is there and not null."""
        return self.values.get(name) is not None

    def inner(self, name: str) -> Fields:
        """An object inside the object."""
        value = self.values.get(name)
        if not isinstance(value, dict):
            raise self.refuse(name, "expected an object", f"Correct '{name}' in config.json.")
        return Fields(value, f"{self.origin}: {name}")

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

    def flag(self, name: str, default: bool) -> bool:
        """true or false."""
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.refuse(name, "expected true or false", f"Correct '{name}' in config.json.")
        return value

    def text(self, name: str, default: str) -> str:
        """A string."""
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.refuse(name, "expected a string", f"Correct '{name}' in config.json.")
        return value

    def text_inside(self, name: str, key: str) -> str | None:
        """A string in an optional inner object."""
        value = self.values.get(name)
        found = value.get(key) if isinstance(value, dict) else None
        return found if isinstance(found, str) else None

    def words(self, name: str) -> tuple[str, ...]:
        """A list of strings; required."""
        value = self.values.get(name)
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise self.refuse(name, "expected a list of strings", f"Correct '{name}' in config.json.")

    def integers(self, name: str) -> tuple[int, ...]:
        """A list of whole numbers; empty when the field is missing."""
        value = self.values.get(name)
        if value is None:
            return ()
        if isinstance(value, list) and all(isinstance(item, int) for item in value):
            return tuple(value)
        raise self.refuse(name, "expected a list of numbers", f"Correct '{name}' in config.json.")
