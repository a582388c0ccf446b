"""Calibration on the real engine gives a profile that plans can use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.calibration import measure
from orchestrator.cli.main import app
from orchestrator.planner.profile import read_profile
from orchestrator.spec import ModelSpec

_RUNNER = CliRunner()


def test_a_profile_of_this_machine_is_written_and_planned_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "_BATCHES", (1, 4))
    monkeypatch.setattr(measure, "_CONTEXTS", (32, 300))
    monkeypatch.setattr(measure, "_DRAFTED_BATCHES", (2,))
    profile = tmp_path / "profile.json"
    model = str(Path(ModelSpec().path).resolve())
    result = _RUNNER.invoke(app, ["calibrate", "--model", model, "--output", str(profile)])
    assert result.exit_code == 0, result.output
    found = read_profile(profile)
    assert found.hardware.name == "cpu"
    assert found.efficiency.error is not None
    steps = json.loads(profile.read_text())["measurements"]
    assert all(step["seconds"] > 0.0 for step in steps)
    assert {step["draft_tokens"] for step in steps} == {0.0, 3.0}
    assert {step["read_tokens"] for step in steps} == {0.0, 256.0, 512.0}
    plan = ["plan", "--model", model, "--profile", str(profile), "--gpus", "3", "--json"]
    sizes = ["--isl", "256", "--osl", "64", "--itl-ms", "1000", "--ttft-ms", "10000"]
    answer = json.loads(_RUNNER.invoke(app, [*plan, *sizes]).stdout)
    assert answer["feasible"]
    assert answer["question"]["precision"] == "fp32"
    assert answer["error_estimate"] == found.efficiency.error
