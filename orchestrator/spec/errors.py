"""Turns what pydantic says into sentences that name the field, the value and the fix."""

from __future__ import annotations

import difflib
import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from orchestrator.errors import UsageError

Path = tuple[str | int, ...]


class SpecError(UsageError):
    """A spec that cannot be used; `problems` holds one sentence for each fault."""

    def __init__(self, problems: Sequence[str], hint: str = "") -> None:
        super().__init__("\n".join(problems), hint)
        self.problems = tuple(problems)


def dotted(path: Path) -> str:
    """A path the way people write it: decode.layout.kvp."""
    return ".".join(str(part) for part in path)


def explain(
    error: ValidationError,
    schema: type[BaseModel],
    lines: Mapping[Path, int],
    flags: Mapping[str, str],
    source: str,
) -> list[str]:
    """One sentence for each fault, where known with its line in `source` or the flag it came by."""
    return [_explain_one(fault, schema, lines, flags, source) for fault in error.errors()]


def _explain_one(
    fault: Mapping[str, object],
    schema: type[BaseModel],
    lines: Mapping[Path, int],
    flags: Mapping[str, str],
    source: str,
) -> str:
    kind = fault["type"]
    location = fault["loc"]
    assert isinstance(location, tuple)
    path = _spec_path(location)
    where = _origin(path, lines, flags, source)
    name = dotted(path)
    if kind == "extra_forbidden":
        known = sorted(_keys_at(path[:-1], schema))
        near = difflib.get_close_matches(str(path[-1]), known, n=1, cutoff=0.5)
        advice = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
        return f"{where}unknown key {name!r}; {advice}"
    if kind == "missing":
        return f"{where}{name} is missing"
    if kind in ("model_type", "dict_type"):
        return f"{where}{name} must be a mapping of keys and values"
    message = str(fault["msg"]).removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if not path:
        return f"{where}{message}"
    value = fault["input"]
    if path[:2] == ("security", "api_keys"):
        return f"{where}{name}: {message}"
    if isinstance(value, BaseModel | dict | list):
        return f"{where}{name}: {message}"
    return f"{where}{name} is {value!r}: {message}"


def _origin(path: Path, lines: Mapping[Path, int], flags: Mapping[str, str], source: str) -> str:
    for length in range(len(path), 0, -1):
        if (flag := flags.get(dotted(path[:length]))) is not None:
            return f"{flag}: "
        if (line := lines.get(path[:length])) is not None:
            return f"{source}, line {line}: "
    return f"{source}: " if source else ""


def _spec_path(location: Path) -> Path:
    """The location without the marks that pydantic adds for faults in mapping keys."""
    return tuple(part for part in location if part != "[key]")


def _step(here: object, part: str | int) -> object:
    """The annotation one key further down; None where the schema knows no such key."""
    if isinstance(here, type) and issubclass(here, BaseModel):
        field = here.model_fields.get(str(part))
        return _bare(field.annotation) if field is not None else None
    if get_origin(here) is dict:
        return _bare(get_args(here)[1])
    return None


def _bare(annotation: object) -> object:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _bare(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        members = [m for m in get_args(annotation) if m is not type(None)]
        return _bare(members[0]) if len(members) == 1 else annotation
    return annotation


def _keys_at(path: Path, schema: type[BaseModel]) -> list[str]:
    here: object = schema
    for part in path:
        here = _step(here, part)
    if isinstance(here, type) and issubclass(here, BaseModel):
        return list(here.model_fields)
    return []
