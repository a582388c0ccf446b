"""Goals of the engine: one row for each whatever was measured, judged from the right figures."""

from __future__ import annotations

from pathlib import Path

from orchestrator.bench.engine.comparisons import Comparison
from orchestrator.bench.engine.goals import judge
from orchestrator.bench.engine.results import HYBRID, PAIR, SHIPPED, Findings
from orchestrator.bench.engine.settings import MEASUREMENTS, NO_EXPERTS_IN_VLLM, Settings
from orchestrator.bench.engine.speeds import Speed, SpeedTable
from orchestrator.bench.engine.steps import RooflineResult
from orchestrator.bench.rounds import Outcome
from orchestrator.bench.targets import Target

_ROWS = 16


def _settings(
    only: frozenset[str] = frozenset(MEASUREMENTS),
    batches: tuple[int, ...] = (1, 8, 32),
    osl: int = 64,
    quick: bool = False,
) -> Settings:
    peers = ("transformers", "vllm")
    return Settings(Path("m"), peers, batches, 128, osl, (0, 3), only, 5, quick, None)


def _speed(figure: float | str) -> Outcome[Speed]:
    """A decode speed, or the reason for having none."""
    if isinstance(figure, str):
        return Outcome(why=figure)
    return Outcome("float32", (Speed(1.0, figure, 1.0, 0, None),))


def _table(**decode: float | str) -> SpeedTable:
    """A table for batches 1, 8 and 32."""
    outcomes = {
        (batch, name.replace("_k", " k=")): _speed(figure)
        for batch in (1, 8, 32)
        for name, figure in decode.items()
    }
    return SpeedTable((), outcomes)


def _named(targets: list[Target], start: str) -> Target:
    return next(target for target in targets if target.goal.name.startswith(start))


def test_every_goal_has_its_row_with_a_reason_when_nothing_was_measured() -> None:
    targets = judge(_settings(only=frozenset({"mixed"})), Findings())
    assert len(targets) == _ROWS
    assert all(target.met is None and target.value is None and target.why for target in targets)
    assert _named(targets, "TTFT").why == "--only leaves prefix out"


def test_decode_is_judged_at_the_draft_length_that_suits_it_best() -> None:
    table = _table(native_k0=10.0, native_k3=24.0, transformers=10.0)
    targets = judge(_settings(), Findings(tables={SHIPPED: table}))
    over = _named(targets, "shipped model, decode over transformers, batch 8")
    assert (over.value, over.met) == (2.4, True)
    drafts = _named(targets, "shipped model, decode at k = 3")
    assert (drafts.value, drafts.met) == (2.4, True)


def test_a_batch_that_was_not_asked_for_is_said_to_be_missing() -> None:
    table = _table(native_k0=10.0, native_k3=24.0, transformers=10.0)
    targets = judge(_settings(batches=(1,)), Findings(tables={SHIPPED: table}))
    row = _named(targets, "shipped model, decode over transformers, batch 32")
    assert (row.met, row.why) == (None, "--batch leaves 32 out")


def test_the_better_peer_is_not_beaten_while_one_of_them_is_missing() -> None:
    fast = _table(native_k0=30.0, transformers=10.0, vllm="no interpreter")
    row = _named(judge(_settings(), Findings(tables={HYBRID: fast})), "100 M hybrid, decode")
    assert (row.value, row.met, row.why) == (3.0, None, "vllm: no interpreter")
    slow = _table(native_k0=10.0, transformers=10.0, vllm="no interpreter")
    row = _named(judge(_settings(), Findings(tables={HYBRID: slow})), "100 M hybrid, decode")
    assert (row.value, row.met) == (1.0, False)


def test_a_peer_that_is_missing_leaves_its_own_row_without_a_value() -> None:
    table = _table(native_k0=10.0, transformers=10.0, vllm="no interpreter")
    row = _named(judge(_settings(), Findings(tables={PAIR: table})), "pair without experts, decode")
    assert (row.value, row.met, row.why) == (None, None, "vllm: no interpreter")


def test_where_vllm_cannot_run_a_model_the_other_peer_is_the_better_one() -> None:
    one = Comparison(
        SHIPPED, {}, {}, {"transformers": 1.6, "vllm": None}, {"vllm": NO_EXPERTS_IN_VLLM}
    )
    row = _named(
        judge(_settings(), Findings(prefill={SHIPPED: one})), "shipped model, prefill of 512"
    )
    assert (row.value, row.met) == (1.6, True)


def test_figures_of_a_quick_bench_or_of_other_lengths_are_not_judged() -> None:
    findings = Findings(tables={SHIPPED: _table(native_k0=10.0, native_k3=1.0, transformers=1.0)})
    for settings in (_settings(quick=True), _settings(osl=32)):
        row = _named(judge(settings, findings), "shipped model, decode over transformers")
        assert (row.value, row.met) == (10.0, None)
        assert row.why


def test_shares_are_judged_in_per_cent() -> None:
    found = RooflineResult(32, "float32", 1, 1, 1, 1, 1, "memory", 0.71, 0.65, None)
    row = _named(
        judge(_settings(), Findings(roofline=[found])), "100 M hybrid, share of the roofline, b"
    )
    assert row.met is None  # batch 1 was not measured
    rows = judge(_settings(), Findings(roofline=[found]))
    batch_32 = next(target for target in rows if target.goal.name.endswith("roofline, batch 32"))
    assert (batch_32.value, batch_32.met) == (71.0, True)
