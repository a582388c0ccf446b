"""The router bench's rows: all of them, judged only by what was measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from orchestrator.bench.router.goals import judge
from orchestrator.bench.router.messages import Sample
from orchestrator.bench.router.run import Findings, Memory, Phase
from orchestrator.bench.router.settings import RouterBenchSettings
from orchestrator.bench.targets import Target

_SAMPLE = Sample(
    window_s=10.0,
    sent=1000,
    finished=1000,
    failed=0,
    wrong=0,
    checked=10,
    tokens=64_000,
    messages=16_000,
    ttft_ms=[1.0, 2.0, 3.0],
    client_cpu_s=5.0,
)
_TIMES = {
    "request_ms": [0.3, 0.4, 0.5],
    "token_ms": [0.1, 0.2, 0.3],
    "loop_delay_ms": [0.0, 1.0, 2.0],
    "hold_ms": [10.0, 20.0, 22.0],
}
_PHASE = Phase(_SAMPLE, 1.0, 0.5, 0.0, {k: list(v) for k, v in _TIMES.items()}, 25.0, 500.0)
_FOUND = Findings(
    low=replace(_PHASE, longest_hold_ms=0.0),
    saturation=_PHASE,
    long_answers=_PHASE,
    loaded=_PHASE,
    latency=_PHASE,
    memory=Memory(100 << 20, 300 << 20, 10_000, 1.0, 1_000_000, 750_000),
    own_cores=True,
)


def _rows(found: Findings) -> dict[str, Target]:
    settings = RouterBenchSettings(Path("model"))
    return {target.goal.name: target for target in judge(settings, found)}


def test_every_target_has_its_row_and_is_judged_where_it_has_a_goal() -> None:
    rows = _rows(_FOUND)
    judged = {name: row.met for name, row in rows.items() if row.met is not None}
    assert all(judged.values())
    assert len(judged) == 10
    assert rows["requests per router core at saturation, answers of 64"].value == 1000.0
    assert rows["memory of 10,000 open requests"].value == 200.0
    for name in ("p50", "p95", "p99"):
        assert f"added latency {name} at 500 requests/s" in rows


def test_growth_that_is_extrapolated_is_not_called_measured() -> None:
    memory = replace(_FOUND.memory, requests=100_000, requests_between=75_000)
    row = _rows(replace(_FOUND, memory=memory))["growth over a million requests"]
    assert row.met is None
    assert "75000 requests" in str(row.why)
    leaking = replace(memory, growth_bytes_per_request=1000.0)
    assert _rows(replace(_FOUND, memory=leaking))["growth over a million requests"].met is False


def test_a_wait_over_25_ms_misses_the_goal_wherever_it_was() -> None:
    found = replace(_FOUND, long_answers=replace(_PHASE, longest_hold_ms=28.0))
    row = _rows(found)["longest wait of a token"]
    assert (row.value, row.met) == (28.0, False)


def test_what_was_measured_beside_others_is_not_judged() -> None:
    found = replace(_FOUND, saturation=replace(_PHASE, others_cores=0.5))
    row = _rows(found)["tokens relayed per router core at saturation, answers of 64"]
    assert row.met is None
    assert "0.50 cores" in str(row.why)
