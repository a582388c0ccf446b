"""`tandem bench helix`: its formulas, its judgement, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.bench.helix.formula import exchanged_bytes
from orchestrator.bench.helix.goals import judge
from orchestrator.bench.helix.run import Case, Findings, Memory
from orchestrator.bench.helix.settings import name_of, parse_layouts
from orchestrator.cli.main import app
from tests.unit.checkpoint.mixed import small_config
from workers.parallel.layout import ParallelLayout


def test_exchanged_bytes_are_those_of_the_paper() -> None:
    """B x H / (KVP TPA) to every other rank of the KVP group, H = query heads x head size."""
    config = small_config()  # 8 query heads of 16; attention in the backbone and in the MTP block
    layers, drafting = config.attention_layers, config.mtp_attention_layers
    assert layers > 0
    assert drafting > 0
    layout = ParallelLayout(kvp=4, tpa=2, ep=8)
    outputs = 3 * (32 * 8 * 16 // 8) * 2
    sums = 3 * (32 * 8 // 8) * 4
    assert exchanged_bytes(config, layout, 32, 0, 2) == layers * (outputs + sums)
    assert exchanged_bytes(config, layout, 32, 3, 2) == (4 * layers + 3 * drafting) * (
        outputs + sums
    )
    assert exchanged_bytes(config, ParallelLayout(tpa=2, tpf=2), 32, 3, 2) == 0


def case(context: int, sent: tuple[int, ...], formula: int = 100) -> Case:
    return Case(
        layout="kvp=2,ep=2",
        ranks=2,
        batch=8,
        context_tokens=context,
        draft_tokens=0,
        step_ms=1.0,
        step_ratio=1.0,
        exposed_exchange_ms=0.1,
        exposed_other_ms=0.1,
        no_overlap_step_ms=1.0,
        no_overlap_exposed_exchange_ms=0.2,
        exchange_bytes=sent,
        formula_bytes=formula,
        other_bytes=5,
    )


def memory(stored: int) -> Memory:
    return Memory("kvp=2,ep=2", 2, 16, 100, stored, 4096)


@pytest.mark.parametrize(
    ("findings", "met"),
    [
        (Findings([case(64, (100,)), case(512, (100,))], [memory(52)]), [True, True, True]),
        (Findings([case(64, (100, 101)), case(512, (100,))], [memory(52)]), [False, False, True]),
        (Findings([case(64, (90,), 90), case(512, (100,))], [memory(52)]), [True, False, True]),
        (Findings([case(64, (100,))], [memory(66)]), [True, None, False]),
        (Findings([case(64, (0,), 0)], []), [None, None, None]),
    ],
)
def test_every_goal_has_a_row(findings: Findings, met: list[bool | None]) -> None:
    targets = judge(findings)
    assert [target.met for target in targets] == met
    assert all(target.why for target in targets if target.met is None)


def test_layouts_are_read_and_named_by_their_sizes() -> None:
    layouts = parse_layouts("kvp=2,ep=2; tpa=2,tpf=2;kvp=1")
    assert [name_of(layout) for layout in layouts] == ["kvp=2,ep=2", "tpa=2,tpf=2", "1 rank"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--layouts", "kvp=2,dp=2"], "error: --layouts: 'dp=2' is no size\n"),
        (["--layouts", "kvp=2"], "error: --layouts: kvp=2: kvp 2 x tpa 1 ranks in attention"),
        (["--contexts", "0"], "error: --contexts: '0' is no whole number from 1 to 1048576\n"),
        (["--draft-tokens", "8"], "error: --draft-tokens: '8' is no whole number from 0 to 7\n"),
    ],
)
def test_a_bad_flag_is_a_usage_error(tmp_path: Path, flags: list[str], says: str) -> None:
    result = CliRunner().invoke(app, ["bench", "helix", "--model", str(tmp_path), *flags])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(says)
