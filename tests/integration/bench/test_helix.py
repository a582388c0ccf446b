"""`tandem bench helix` on real groups: bytes are the formula's, and every row is judged."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from orchestrator.cli.main import app
from tests.reference_models import Shape, write_drafting


def test_a_small_run_reaches_the_targets_that_need_no_machine(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write_drafting(folder, Shape(pattern="M*E*", vocab_size=97), seed=5)
    flags = ["--layouts", "kvp=2,ep=2", "--contexts", "16,200", "--draft-tokens", "0,2"]
    turns = ["--batch", "3", "--steps", "1", "--rounds", "1"]
    result = CliRunner().invoke(
        app, ["bench", "helix", "--model", str(folder), *flags, *turns, "--json"]
    )
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert [row["met"] for row in document["targets"]] == [True, True, True]
    assert len(document["cases"]) == 4
    assert all(len(case["exchange_bytes"]) == 1 for case in document["cases"])
    assert all(case["no_overlap_step_ms"] is not None for case in document["cases"])
    assert document["machine"]["cores"]
