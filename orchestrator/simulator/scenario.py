"""What happens to a cluster besides its traffic: a file of moments, each with one thing.

```yaml
- {at_s: 60, kill: decode-3}             # or {kill: {role: decode, count: 2}}: the fullest ones
- {at_s: 90, drain: prefill-0}
- {at_s: 95, resume: prefill-0}
- {at_s: 120, flip: decode-1, to: prefill}
- {at_s: 180, scale: {prefill: 4, decode: 10}}
- {at_s: 200, gpus: 16}                  # nodes come; a negative number: they are taken away
```
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from orchestrator.errors import UsageError
from router.core.events import Role

Kind = Literal["kill", "drain", "resume", "flip", "scale", "gpus"]
_KINDS: tuple[Kind, ...] = ("kill", "drain", "resume", "flip", "scale", "gpus")


@dataclass(frozen=True, slots=True)
class Moment:
    """One thing that happens. Of `worker`, `role` and `counts` only what the kind needs is set."""

    at_s: float
    kind: Kind
    worker: str = ""
    role: Role = "decode"
    count: int = 0
    counts: tuple[tuple[Role, int], ...] = ()


def read_scenario(path: Path) -> list[Moment]:
    """The moments of a YAML or JSON file, in order. Raises UsageError, which names the entry."""
    try:
        text = path.read_text(encoding="utf-8")
        rows = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"--scenario {path}: cannot be read: {error}") from error
    if not isinstance(rows, list):
        raise UsageError(f"--scenario {path}: expected a list of moments")
    moments = []
    for number, row in enumerate(rows, 1):
        try:
            moments.append(_moment(row))
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"--scenario {path}, entry {number}: {error}") from error
    return sorted(moments, key=lambda moment: moment.at_s)


def _moment(row: object) -> Moment:
    if not isinstance(row, dict):
        raise TypeError("expected an object such as {at_s: 60, kill: decode-0}")
    named = [kind for kind in _KINDS if kind in row]
    if len(named) != 1:
        raise ValueError(f"expected exactly one of {', '.join(_KINDS)}")
    if "at_s" not in row or float(row["at_s"]) < 0.0:
        raise ValueError("at_s must be seconds since the beginning, at least 0")
    kind, at_s = named[0], float(row["at_s"])
    unknown = set(row) - {kind, "at_s", *(("to",) if kind == "flip" else ())}
    if unknown:
        raise ValueError(f"unknown: {', '.join(sorted(map(str, unknown)))}")
    value = row[kind]
    match kind:
        case "kill" if isinstance(value, dict):
            return Moment(at_s, kind, role=_role(value["role"]), count=int(value.get("count", 1)))
        case "kill" | "drain" | "resume":
            return Moment(at_s, kind, worker=str(value))
        case "flip":
            return Moment(at_s, kind, worker=str(value), role=_role(row["to"]))
        case "scale":
            counts = tuple((_role(role), int(count)) for role, count in dict(value).items())
            if any(count < 0 for _, count in counts):
                raise ValueError("scale: counts must not be negative")
            return Moment(at_s, kind, counts=counts)
        case "gpus":
            return Moment(at_s, kind, count=int(value))


def _role(value: object) -> Role:
    if value == "prefill":
        return "prefill"
    if value == "decode":
        return "decode"
    raise ValueError(f"role {value!r}: must be prefill or decode")
