"""Typed reading of a config.json's object, with errors that name field, value and fix.

Exists because config.json is written by people and by many tools: a wrong type found here costs
one line, found later it is a shape error deep in a layer. The engine and whoever plans without
torch read the same files, each with an error of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Fields:
    """The object of one config.json; `origin` is shown in messages, which `error` carries."""

    values: Mapping[str, object]
    origin: str
    error: ClassVar[type[ValueError]] = ValueError

    def refuse(self, name: str, reason: str, fix: str) -> ValueError:
        """The error for field `name`; the caller raises it."""
        found = repr(self.values[name]) if name in self.values else "missing"
        return self.error(f"{self.origin}: field '{name}' is {found}: {reason}. {fix}")

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

    def flag(self, name: str, default: bool) -> bool:
        """true or false."""
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.refuse(name, "expected true or false", f"Correct '{name}' in config.json.")
        return value

    def words(self, name: str) -> tuple[str, ...]:
        """A list of strings; required."""
        value = self.values.get(name)
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise self.refuse(name, "expected a list of strings", f"Correct '{name}' in config.json.")
