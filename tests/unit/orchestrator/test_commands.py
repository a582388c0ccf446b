"""The command line: clear refusals, exit statuses, and nothing but the answer on stdout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli.main import app

_RUNNER = CliRunner()


@pytest.fixture(autouse=True)
def no_clusters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clusters of the person who runs the tests are none of our business."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "command",
    [
        ["status"],
        ["generate", "x"],
        ["down"],
        ["status", "--json"],
        ["why"],
        ["drain", "decode-1"],
        ["flip", "decode-1", "prefill"],
        ["scale", "decode=2"],
    ],
)
def test_without_a_cluster_the_next_command_is_suggested(command: list[str]) -> None:
    result = _RUNNER.invoke(app, command)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == (
        "error: no cluster is running on this machine\n  start one with `tandem up`\n"
    )


def test_an_unknown_command_or_flag_is_a_usage_error() -> None:
    assert _RUNNER.invoke(app, ["upp"]).exit_code == 2
    assert _RUNNER.invoke(app, ["up", "--grcp", "x"]).exit_code == 2


def test_a_spec_with_an_unknown_key_is_a_usage_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text("decode:\n  wrkers: {min: 1}")
    result = _RUNNER.invoke(app, ["up", "-f", "cluster.yaml"])
    assert result.exit_code == 2
    assert result.stderr == (
        "error: cluster.yaml, line 2: unknown key 'decode.wrkers'; did you mean 'workers'?\n"
    )


def test_a_flag_with_a_bad_value_is_named() -> None:
    result = _RUNNER.invoke(app, ["up", "--decode-workers", "0"])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --decode-workers: decode.workers: min must be at least")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--draft-tokens", "8"], "--draft-tokens: decode.draft_tokens is 8: must be auto"),
        (["--kvp", "2"], "kvp x tpa = 2 x 1 = 2 must equal tpf x ep"),
        (["--dtype", "int3"], "--dtype: model.dtype is 'int3'"),
    ],
)
def test_layouts_that_cannot_be_are_refused_by_their_flags(
    flags: list[str], says: str, tmp_path: Path
) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "x"}\n')
    files = ["--model", ".", "--input", "in.jsonl", "--output", "out.jsonl"]
    result = _RUNNER.invoke(app, ["batch", *files, *flags])
    assert result.exit_code == 2
    assert says in result.stderr
    assert not (tmp_path / "out.jsonl").exists()


def test_a_model_folder_that_is_none_is_told_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "x"}\n')
    (tmp_path / "empty").mkdir()
    for model, says in (("none", "does not exist"), ("empty", "has no config.json")):
        files = ["--model", model, "--input", "in.jsonl", "--output", "out.jsonl"]
        result = _RUNNER.invoke(app, ["batch", *files])
        assert result.exit_code == 1
        assert says in result.stderr
        assert "--model DIR" in result.stderr


def test_a_missing_input_file_is_a_usage_error() -> None:
    files = ["--model", ".", "--input", "none.jsonl", "--output", "out.jsonl"]
    assert _RUNNER.invoke(app, ["batch", *files]).exit_code == 2


def test_an_address_where_nobody_answers_is_one_clear_line() -> None:
    result = _RUNNER.invoke(app, ["status", "--address", "127.0.0.1:1"])
    assert result.exit_code == 1
    assert result.stderr.splitlines()[0] == "error: no cluster answers at 127.0.0.1:1"


def test_a_stale_record_is_cleared_by_down(tmp_path: Path) -> None:
    folder = tmp_path / ".cache" / "tandem" / "clusters"
    folder.mkdir(parents=True)
    record = {
        "cluster": "nobody-has-this-mark",
        "pid": 2**22 + 1,
        "pid_started_unix_s": 1.0,
        "grpc": "127.0.0.1:50051",
        "http": "127.0.0.1:8000",
        "model": "m",
        "log_dir": str(tmp_path),
        "temp_dir": str(tmp_path / "ray"),
    }
    (folder / "50051.json").write_text(json.dumps(record))
    assert _RUNNER.invoke(app, ["status"]).exit_code == 1
    result = _RUNNER.invoke(app, ["down"])
    assert result.exit_code == 0
    assert "cleared up after the cluster at 127.0.0.1:50051" in result.stderr
    assert list(folder.iterdir()) == []


def test_debug_shows_the_stack() -> None:
    result = _RUNNER.invoke(app, ["--debug", "status"])
    assert type(result.exception).__name__ == "UserError"


@pytest.mark.parametrize("size", ["decode", "decode=", "decode=-1", "readers=2", "decode=two"])
def test_a_pool_size_that_is_none_is_shown_with_the_right_form(size: str) -> None:
    result = _RUNNER.invoke(app, ["scale", size])
    assert result.exit_code == 2
    assert repr(size) in result.stderr
    assert "prefill=2" in result.stderr
