"""How commands talk: answers on stdout, all else on stderr, motion on terminals only."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator


def note(message: str) -> None:
    """Say something that is not the command's answer."""
    print(message, file=sys.stderr, flush=True)


def print_json(document: object) -> None:
    """The one JSON document of `--json`."""
    print(json.dumps(document, indent=2, ensure_ascii=False), flush=True)


@contextlib.contextmanager
def progress(spinner: bool | None = None) -> Iterator[Callable[[str], None]]:
    """Report steps of something slow: a spinner on a terminal, one line for each step elsewhere."""
    if sys.stdout.isatty() if spinner is None else spinner:
        from rich.console import Console

        with Console().status("") as status:
            yield lambda message: status.update(f"{message} ...")
        return
    last = ""

    def report(message: str) -> None:
        nonlocal last
        if message != last:
            note(message)
            last = message

    yield report
