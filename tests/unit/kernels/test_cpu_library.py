"""Kernels are compiled once and kept; where that fails the log says why."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from workers.kernels.cpu import library


@pytest.fixture(autouse=True)
def no_other_compilers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


def compiler(folder: Path, script: str) -> None:
    """A program named c++ that does as the script says."""
    (folder / "bin").mkdir()
    program = folder / "bin" / "c++"
    program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    program.chmod(0o755)


def test_without_a_compiler_there_are_none_and_one_line_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert library.load(tmp_path / "cache") is None
    (record,) = caplog.records
    assert "no C++ compiler found; install one of c++" in record.getMessage()


def test_a_compiler_that_refuses_is_quoted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    compiler(tmp_path, '[ "$1" = --version ] && exit 0; echo "unknown flag"; exit 1')
    with caplog.at_level(logging.WARNING):
        assert library.load(tmp_path / "cache") is None
    assert "unknown flag" in caplog.text
    assert list((tmp_path / "cache").iterdir()) == []


def test_what_is_compiled_is_kept_until_the_compiler_changes(tmp_path: Path) -> None:
    makes_files = 'while [ "$1" ]; do [ "$1" = -o ] && echo made > "$2"; shift; done'
    compiler(tmp_path, f'[ "$1" = --version ] && echo 1 && exit; {makes_files}')
    first = library.built(tmp_path / "cache")
    made_ns = first.stat().st_mtime_ns
    assert library.built(tmp_path / "cache") == first
    assert first.stat().st_mtime_ns == made_ns
    program = tmp_path / "bin" / "c++"
    program.write_text(program.read_text().replace("echo 1", "echo 2"), encoding="utf-8")
    assert library.built(tmp_path / "cache") != first
