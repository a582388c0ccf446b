"""Lengths of requests: fixed, sampled, and read from the public trace formats."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.planner.trace_file import read_lengths
from orchestrator.planner.workload import fixed, sampled
from workers.perf.errors import PerfError

_LENGTHS = st.lists(st.tuples(st.integers(1, 10**5), st.integers(1, 10**4)), min_size=1)


@given(_LENGTHS)
def test_bins_keep_the_mean_prompt(pairs: list[tuple[int, int]]) -> None:
    work = sampled([p for p, _ in pairs], [a for _, a in pairs], percentile=0.95)
    assert work.mean_isl == pytest.approx(sum(p for p, _ in pairs) / len(pairs))
    assert float(work.weights.sum()) == pytest.approx(1.0)


def test_equal_requests_are_a_fixed_workload() -> None:
    one, other = sampled([100] * 5, [10] * 5, percentile=0.9), fixed(100, 10)
    assert (one.mean_isl, one.mean_osl, one.context, one.held, one.isl_percentile, one.osl_scv) == (
        other.mean_isl,
        other.mean_osl,
        other.context,
        other.held,
        other.isl_percentile,
        other.osl_scv,
    )


def test_contexts_are_weighted_by_how_long_answers_stay() -> None:
    work = sampled([1000, 1000], [10, 990], percentile=0.5)
    assert work.context == pytest.approx(0.01 * 1005 + 0.99 * 1495)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [((0, 5, 0.0), "isl 0"), ((5, 0, 0.0), "osl 0"), ((5, 5, 1.0), "prefix_hit 1")],
)
def test_impossible_lengths_are_refused(arguments: tuple[float, float, float], says: str) -> None:
    with pytest.raises(PerfError, match=says):
        fixed(*arguments)


def test_mooncake_lines_are_read(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text(
        '{"timestamp": 0, "input_length": 7, "output_length": 3, "hash_ids": [1]}\n\n'
        '{"timestamp": 5, "input_length": 9, "output_length": 0, "hash_ids": [1]}\n'
    )
    assert read_lengths(file).isl == [7]


def test_azure_and_burstgpt_columns_are_read(tmp_path: Path) -> None:
    azure, burst = tmp_path / "a.csv", tmp_path / "b.csv"
    azure.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16,374,44\n")
    burst.write_text(
        "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,"
        "Log Type\n1,,2,GPT-4,5,6,11,API\n2,,2,GPT-4,5,0,5,API\n"
    )
    assert (read_lengths(azure).isl, read_lengths(azure).osl) == ([374], [44])
    assert (read_lengths(burst).isl, read_lengths(burst).osl) == ([5], [6])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a,b\n1,2\n", "found columns a, b"),
        ("ContextTokens,GeneratedTokens\n1,x\n", "line 2"),
        ('{"input_length": 1}\n', "line 1"),
        ("ContextTokens,GeneratedTokens\n", "no request"),
    ],
)
def test_a_file_of_another_kind_is_refused_with_its_line(
    tmp_path: Path, text: str, says: str
) -> None:
    file = tmp_path / "trace"
    file.write_text(text)
    with pytest.raises(PerfError, match=says):
        read_lengths(file)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PerfError, match="cannot be read"):
        read_lengths(tmp_path / "none.csv")
