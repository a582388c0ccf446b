"""What a bench shows while it measures."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from orchestrator.cli.terminal import note


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """What is being measured: a spinner where standard error is a terminal, else lines."""
    if not sys.stderr.isatty():
        yield note
        return
    from rich.console import Console

    with Console(stderr=True).status("") as status:
        yield lambda message: status.update(f"{message} ...")
