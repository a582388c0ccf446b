"""All checks as one page of Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.literature import (
    disaggregation,
    helix_reads,
    helix_search,
    latent_moe,
    nemotron,
    speculation,
)
from orchestrator.literature.check import Check, Section

_HEAD = """# Our model beside the literature

Written by `make literature` (`orchestrator/literature`); tests hold every row to what it says here.
"Ours" comes from the same code that plans and simulates. Peaks and assumptions are in
`workers/perf/hardware.py` and `workers/perf/efficiency.py`; nothing here was measured on a GPU.
"""


def sections() -> list[Section]:
    """Every check, computed."""
    return [
        helix_reads.section(),
        helix_search.section(),
        latent_moe.section(),
        disaggregation.section(),
        nemotron.section(),
        speculation.speed_bench(),
        speculation.rollouts(),
    ]


def page(found: Sequence[Section]) -> str:
    """The page."""
    checks = [check for section in found for check in section.checks]
    agree = sum(1 for check in checks if check.agrees)
    summary = (
        f"\n{agree} of {len(checks)} figures agree within the tolerance of their row; the other "
        f"{len(checks) - agree} say why not.\n"
    )
    return _HEAD + summary + "".join(map(_section, found))


def _section(section: Section) -> str:
    misses: dict[str, int] = {}
    rows = []
    for check in section.checks:
        note = "yes"
        if not check.agrees:
            note = f"no [{misses.setdefault(check.why, len(misses) + 1)}]"
        rows.append(
            f"| {check.what} | {_figure(check.paper)} | {_figure(check.ours)} "
            f"| {check.ratio:.2f} | {_tolerance(check)} | {note} |\n"
        )
    reasons = "".join(f"\n[{number}] {why}.\n" for why, number in misses.items())
    return (
        f"\n## {section.title}\n\nSource: {section.source}. {section.method}\n\n"
        "| figure | paper | ours | ratio | within | agrees |\n|---|---|---|---|---|---|\n"
        + "".join(rows)
        + reasons
    )


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _tolerance(check: Check) -> str:
    return "exact" if check.tolerance <= 1e-6 else f"{check.tolerance:.2g}"
