"""The progress bar shows on a terminal and nowhere else."""

from __future__ import annotations

import io
import sys

import pytest

from workers.checkpoint.terminal import progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bytes_are_drawn_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress_bar("tandem-tiny") as show:
        assert show is not None
        show(1_000_000, 4_000_000)
        show(4_000_000, 4_000_000)
    assert "tandem-tiny" in terminal.getvalue()
    assert "4.0/4.0 MB" in terminal.getvalue()


def test_a_pipe_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stderr", pipe)
    with progress_bar() as show:
        assert show is None
    assert pipe.getvalue() == ""
