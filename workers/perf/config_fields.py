"""What the performance model reads of a config.json beside what everybody reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from workers import config_fields
from workers.perf.errors import PerfError


@dataclass(frozen=True, slots=True)
class Fields(config_fields.Fields):
    """The object; `origin` is shown in messages."""

    error: ClassVar[type[ValueError]] = PerfError

    def inner(self, name: str) -> Fields:
        """An object inside the object."""
        value = self.values.get(name)
        if not isinstance(value, dict):
            raise self.refuse(name, "expected an object", f"Correct '{name}' in config.json.")
        return Fields(value, f"{self.origin}: {name}")

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

    def integers(self, name: str) -> tuple[int, ...]:
        """A list of whole numbers; empty when the field is missing."""
        value = self.values.get(name)
        if value is None:
            return ()
        if isinstance(value, list) and all(isinstance(item, int) for item in value):
            return tuple(value)
        raise self.refuse(name, "expected a list of numbers", f"Correct '{name}' in config.json.")
