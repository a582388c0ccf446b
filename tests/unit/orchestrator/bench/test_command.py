"""`tandem bench`: a group of commands, and flags that are refused with their names."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli.main import app

_RUNNER = CliRunner()


def test_bench_without_a_command_shows_what_there_is() -> None:
    result = _RUNNER.invoke(app, ["bench"])
    assert "engine" in result.output


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--batch", "0"], "error: --batch: '0' is no whole number from 1 to 1024\n"),
        (
            ["--against", "sglang"],
            "error: --against: unknown name 'sglang'\n  one of transformers, vllm\n",
        ),
    ],
)
def test_a_bad_flag_is_a_usage_error(tmp_path: Path, flags: list[str], says: str) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    result = _RUNNER.invoke(app, ["bench", "engine", "--model", str(tmp_path), *flags])
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", says)
