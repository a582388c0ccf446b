"""Every published figure is reproduced within its tolerance, or differs as the page says."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.literature.check import Check
from orchestrator.literature.page import page, sections

_FOUND = sections()
_CHECKS = [(section.title, check) for section in _FOUND for check in section.checks]
_PAGE = Path(__file__).parents[3] / "docs/literature.md"


@pytest.mark.parametrize(
    ("title", "check"), _CHECKS, ids=[f"{title}: {check.what}" for title, check in _CHECKS]
)
def test_a_figure_is_as_the_page_states(title: str, check: Check) -> None:
    assert check.as_stated, f"{title}: {check.what}: {check.ours:g}, not {check.paper:g}"


@pytest.mark.parametrize(
    "title",
    [
        "LatentMoE: ridge, communication and latent exchanges",
        "SPEED-Bench: projected speed-up",
        "Speculative rollouts: speed-up of a training step",
    ],
)
def test_these_papers_are_reproduced_in_full(title: str) -> None:
    checks = [check for found, check in _CHECKS if found == title]
    assert checks
    assert all(check.agrees for check in checks)


def test_reading_kv_is_reproduced_exactly() -> None:
    reads = [check for _, check in _CHECKS if check.what.startswith("KV read")]
    assert len(reads) == 10
    assert all(check.ours == pytest.approx(check.paper, rel=1e-9) for check in reads)


def test_a_difference_without_a_reason_is_not_as_stated() -> None:
    assert not Check("x", 1.0, 2.0, 0.1).as_stated
    assert not Check("x", 1.0, 2.0, 0.1, "", (1.0, 3.0)).as_stated
    assert Check("x", 1.0, 2.0, 0.1, "because", (1.0, 3.0)).as_stated
    assert not Check("x", 1.0, 4.0, 0.1, "because", (1.0, 3.0)).as_stated


def test_the_page_in_the_repository_is_the_one_that_the_checks_write() -> None:
    assert _PAGE.read_text(encoding="utf-8") == page(_FOUND), "run `make literature`"
