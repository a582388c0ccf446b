"""What the engine reads of a config.json beside what everybody reads."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from workers import config_fields
from workers.model.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Fields(config_fields.Fields):
    """The object of one config.json; `origin` is the path shown in messages."""

    error: ClassVar[type[ValueError]] = CheckpointError

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
