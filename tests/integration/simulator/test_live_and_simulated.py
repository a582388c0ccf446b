"""The same small trace through real processes and through the simulator.

Asserted is what a busy machine cannot change: that all tokens come, where prompts are read, that no
first token comes too early, and that who takes longer in one takes longer in the other. How close
latencies are is what `tandem bench simulator` reports.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.bench.simulator.live import LiveCluster, run_live, run_simulated
from orchestrator.cli.main import app
from orchestrator.simulator.trace import TraceRequest, read_trace
from workers.engine.simulated.times import LinearTimes

TRACE = Path(__file__).parents[2] / "data" / "azure_2023_conv_300.csv"


@pytest.fixture
def cluster(tmp_path: Path) -> LiveCluster:
    limits = {"max_position_embeddings": 8192, "vocab_size": 2048}
    (tmp_path / "config.json").write_text(json.dumps(limits))
    times = LinearTimes(
        step_ms=10.0, prompt_token_us=50.0, row_us=200.0, transfer_ms=3.0, bytes_per_s=1e12
    )
    return LiveCluster(tmp_path, times)


def test_live_and_simulated_agree_on_everything_that_is_not_noise(cluster: LiveCluster) -> None:
    read = read_trace(TRACE, limit=200)
    trace = [
        TraceRequest(0.03 * n, one.prompt_tokens, 2 + one.answer_tokens // 8)
        for n, one in enumerate(read)
    ]
    simulated, live = run_simulated(cluster, trace), run_live(cluster, trace)
    assert [row.tokens for row in live] == [one.answer_tokens for one in trace]
    assert [row.tokens for row in simulated] == [one.answer_tokens for one in trace]
    # Nothing here is short enough to be read where it is decoded, or nearly nothing.
    assert sum(row.local for row in live) <= 10
    assert sum(row.local for row in simulated) <= 10
    alone_ms = [cluster.times.step_s(one.prompt_tokens, 0, 0) * 1e3 for one in trace]
    for rows in (simulated, live):
        # No first token comes before its prompt is read; a late timer may hide a little of it.
        early = sum(row.ttft_ms < 0.9 * ms for row, ms in zip(rows, alone_ms, strict=True))
        assert early <= 10
    ordered = sorted(range(len(trace)), key=lambda number: simulated[number].total_ms)
    tenths = [ordered[begin : begin + 20] for begin in range(0, len(ordered), 20)]
    means = [sum(live[number].total_ms for number in tenth) / 20 for tenth in tenths]
    rising = sum(after > before for before, after in pairwise(means))
    assert rising >= len(means) - 2, "who takes longer in the simulator takes longer live"


def test_the_bench_has_a_row_for_every_target() -> None:
    result = CliRunner().invoke(app, ["bench", "simulator", "--quick", "--no-live", "--json"])
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    names = [row["name"] for row in document["targets"]]
    assert len(names) == len(set(names)) == 9
    assert all(row["met"] is None and row["why"] for row in document["targets"])
    assert [speed["gpus"] for speed in document["speeds"]] == [10, 1000, 10000]
    assert all(speed["failed"] == 0 for speed in document["speeds"])
    assert document["machine"]["cores"]
