"""Plots and tables of reports: what a reader's eye needs."""

from __future__ import annotations

import re

import pytest

from orchestrator.charts import timeline
from orchestrator.drawing import BLUE, html_table


def ticks(plot: str) -> list[str]:
    return re.findall(r'text-anchor="end">([\d.,]+)<', plot)


@pytest.mark.parametrize("most", [1, 2, 3, 30])
def test_counts_have_no_ticks_between_whole_numbers(most: int) -> None:
    plot = timeline("Workers", [("", BLUE, "", [(0.0, 0.0), (9.0, float(most))])])
    found = ticks(plot)
    assert len(found) >= 2
    assert all(float(tick).is_integer() for tick in found)


def test_shares_have_ticks_between_whole_numbers() -> None:
    plot = timeline("Busy share", [("", BLUE, "", [(0.0, 0.0), (9.0, 0.9)])])
    assert "0.5" in ticks(plot) or "0.4" in ticks(plot)


def test_columns_of_figures_stand_on_the_right_and_words_on_the_left() -> None:
    rows = [("TTFT", "1,234.5", "-"), ("ITL <mean>", "3 %", "97.5%")]
    page = html_table(("ms", "p50", "p99"), rows)
    assert page.count("<td class=figure>") == 4
    assert "<th align=left>ms" in page
    assert "<td>ITL &lt;mean&gt;" in page
