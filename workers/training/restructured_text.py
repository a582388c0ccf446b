"""Turns reStructuredText sources into plain English prose, one piece per section.

Exists because the Python manual is only useful as training text once its markup is gone: a
2048-token vocabulary has no room for directives, and the model should learn sentences, not
underlines. This is a reader for prose, not an rst parser: code blocks, tables and directives
whose content is not running text are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_UNDERLINE = re.compile(r"^([=\-~^\"'*#+.`:_])\1{2,}\s*$")
_DIRECTIVE = re.compile(r"^\s*\.\. (?P<name>[\w:+-]+)::\s*(?P<rest>.*)$")
_COMMENT = re.compile(r"^\s*\.\.(\s|$)")
_OPTION = re.compile(r"^\s*:[\w -]+:(\s.*)?$")
_TABLE = re.compile(r"^\s*([+|].*[+|]|=+(\s+=+)+)\s*$")
# Directives whose argument names the thing that the indented text then describes.
_DESCRIBES = frozenset(
    ("function", "class", "method", "attribute", "data", "exception", "classmethod")
) | frozenset(("staticmethod", "decorator", "opcode", "describe", "cmdoption", "option", "envvar"))
# Directives whose indented body is prose and is kept without the directive line.
_PROSE = frozenset(
    ("note", "warning", "seealso", "versionadded", "versionchanged", "deprecated", "tip")
)

_INLINE: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r":[\w:+-]+:`[!~]?([^`<]+?)\s*<[^`>]*>`"), r"\1"),
    (re.compile(r":[\w:+-]+:`[!~]?([^`]+)`"), r"\1"),
    (re.compile(r"`([^`<]+?)\s*<[^`>]*>`_{1,2}"), r"\1"),
    (re.compile(r"``([^`]+)``"), r"\1"),
    (re.compile(r"`([^`]+)`_{0,2}"), r"\1"),
    (re.compile(r"\*\*([^*]+)\*\*"), r"\1"),
    (re.compile(r"(?<![\w*])\*([^*\s][^*]*)\*(?!\w)"), r"\1"),
    (re.compile(r"\|(\w+)\|"), r"\1"),
    (re.compile(r"\[#?\w*\]_"), ""),
    (re.compile(r"\\ ?"), ""),
)


def strip_inline(text: str) -> str:
    """Remove roles, links, literals and emphasis, keeping the words they wrap."""
    for pattern, replacement in _INLINE:
        text = pattern.sub(replacement, text)
    return re.sub(r"\s+", " ", text).strip()


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _prose_lines(lines: list[str]) -> Iterator[str]:
    """Yield the lines that belong to running text; an empty string ends a paragraph."""
    skip_deeper_than: int | None = None
    for line in lines:
        if not line.strip():
            yield ""
            continue
        indent = _indent(line)
        if skip_deeper_than is not None:
            if indent > skip_deeper_than:
                continue
            skip_deeper_than = None
        directive = _DIRECTIVE.match(line)
        if directive:
            name = directive["name"].rsplit(":", 1)[-1]
            if name in _DESCRIBES:
                yield ""
                yield directive["rest"]
                yield ""
            elif name not in _PROSE:
                skip_deeper_than = indent
            continue
        if _COMMENT.match(line):
            skip_deeper_than = indent
            continue
        if _OPTION.match(line) or _TABLE.match(line) or _UNDERLINE.match(line):
            yield ""
            continue
        if line.lstrip().startswith((">>>", "...")):
            skip_deeper_than = max(indent - 1, 0)
            yield ""
            continue
        if line.rstrip().endswith("::"):
            skip_deeper_than = indent
            yield line.rstrip()[:-1]
            continue
        if line.lstrip().startswith(("* ", "- ", "#. ")):
            yield ""
        yield line


def _paragraphs(lines: list[str]) -> str:
    paragraphs: list[str] = []
    current: list[str] = []
    for line in [*_prose_lines(lines), ""]:
        if line:
            current.append(line.strip())
            continue
        text = strip_inline(" ".join(current))
        if len(text) > 1:
            paragraphs.append(text)
        current = []
    return "\n".join(paragraphs)


def sections(source: str) -> Iterator[tuple[str, str]]:
    """Split an rst file into (title, prose) pairs in order, without empty sections."""
    title = ""
    body: list[str] = []
    lines = source.splitlines()
    for index, line in enumerate(lines):
        following = lines[index + 1] if index + 1 < len(lines) else ""
        heading = (
            bool(line.strip())
            and not _UNDERLINE.match(line)
            and _UNDERLINE.match(following) is not None
            and len(following.rstrip()) >= len(line.rstrip()) - 1
            and _indent(line) <= 1
        )
        if not heading:
            body.append(line)
            continue
        prose = _paragraphs(body)
        if title and prose:
            yield title, prose
        title, body = strip_inline(line), []
    prose = _paragraphs(body)
    if title and prose:
        yield title, prose
