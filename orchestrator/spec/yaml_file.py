"""Reads YAML and remembers on which line every key stands, for messages that point at it."""

from __future__ import annotations

from pathlib import Path

import yaml

from orchestrator.spec.errors import Path as KeyPath
from orchestrator.spec.errors import SpecError, dotted


def read_yaml(path: Path) -> tuple[dict[str, object], dict[KeyPath, int]]:
    """The mapping in a file and the line of each of its keys.

    Raises SpecError for a file that cannot be read, is no YAML, is no mapping, or has a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise SpecError([f"{path}: {reason}"]) from error
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is None:
            return {}, {}
        if not isinstance(root, yaml.MappingNode):
            raise SpecError([f"{path}: a spec is a mapping of keys, such as 'decode:'"])
        lines: dict[KeyPath, int] = {}
        _note_lines(root, (), lines, path)
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SpecError([_syntax_error(path, error)]) from error
    assert isinstance(content, dict)
    return content, lines


def _note_lines(
    node: yaml.MappingNode, at: KeyPath, lines: dict[KeyPath, int], source: Path
) -> None:
    for key_node, value_node in node.value:
        key = (*at, str(key_node.value))
        line = key_node.start_mark.line + 1
        if key in lines:
            first = lines[key]
            raise SpecError(
                [f"{source}, line {line}: key {dotted(key)!r} is already on line {first}"]
            )
        lines[key] = line
        if isinstance(value_node, yaml.MappingNode):
            _note_lines(value_node, key, lines, source)


def _syntax_error(path: Path, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or "is not valid YAML"
    if mark is None:
        return f"{path}: {problem}"
    return f"{path}, line {mark.line + 1}, column {mark.column + 1}: {problem}"
