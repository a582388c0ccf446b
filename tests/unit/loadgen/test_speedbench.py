"""SPEED-Bench: its rows, and its figures against ones computed by hand and in the paper."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.errors import LoadError
from loadgen.figures import conditional
from loadgen.recording import Recorder, Speculation
from loadgen.speedbench.results import acceptance_length, document, projected_speedup
from loadgen.speedbench.rows import PLACEHOLDER, SAMPLE, Question, read_questions, select
from loadgen.speedbench.sessions import sessions_of

CATEGORIES = {
    "coding", "humanities", "math", "multilingual", "qa", "rag", "reasoning", "roleplay", "stem",
    "summarization", "writing",
}  # fmt: skip


def row(number: int, category: str = "math", turns: Sequence[str] = ("Why?",)) -> dict[str, object]:
    return {
        "question_id": f"q{number}",
        "category": category,
        "sub_category": "",
        "turns": list(turns),
        "source": "here",
        "src_id": str(number),
        "difficulty": "",
        "multiturn": len(turns) > 1,
    }


def lines(folder: Path, rows: list[dict[str, object]]) -> Path:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return file


def test_the_sample_has_every_category_and_conversations() -> None:
    questions = read_questions(SAMPLE)
    assert {question.category for question in questions} == CATEGORIES
    assert any(len(question.turns) > 1 for question in questions)
    assert len({question.question_id for question in questions}) == len(questions)


def test_placeholders_are_refused_with_how_to_prepare_them(tmp_path: Path) -> None:
    file = lines(tmp_path, [row(1), row(2, turns=(f"{PLACEHOLDER} cnn_dailymail",))])
    with pytest.raises(LoadError, match="1 of 2 rows are placeholders") as refused:
        read_questions(file)
    assert "prepare_data.py --dataset speed" in refused.value.hint


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"question_id": "a", "turns": ["b"]}', "lacks category"),
        ('{"question_id": "a", "category": "b", "turns": "c"}', "turns is no list"),
        ("{", "cannot be read"),
        ("", "has no rows"),
    ],
)
def test_rows_of_another_schema_are_refused(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(text)
    with pytest.raises(LoadError, match=says):
        read_questions(file)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="no such file"):
        read_questions(tmp_path / "none.parquet")


def test_parquet_files_of_a_folder_are_read_by_config(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for config, category in (("qualitative", "math"), ("throughput_1k", "low_entropy")):
        (tmp_path / config).mkdir()
        table = arrow.Table.from_pylist([row(n, category) for n in range(3)])
        parquet.write_table(table, tmp_path / config / "test.parquet")
    with pytest.raises(LoadError, match="several configs: qualitative, throughput_1k"):
        read_questions(tmp_path)
    found = read_questions(tmp_path, "throughput_1k")
    assert {question.category for question in found} == {"low_entropy"}
    with pytest.raises(LoadError, match="no parquet file of 'throughput_9k'"):
        read_questions(tmp_path, "throughput_9k")


def test_questions_are_chosen_by_category() -> None:
    questions = read_questions(SAMPLE)
    chosen = select(questions, ["Math", "qa"], 2)
    assert [question.category for question in chosen] == ["math", "math", "qa", "qa"]
    with pytest.raises(LoadError, match="--categories maths"):
        select(questions, ["maths"], None)


def test_every_turn_of_a_question_is_asked() -> None:
    question = Question("a", "math", "", ("one", "two"), "", "")
    (session,) = sessions_of([question], 64)
    assert [(turn.text, turn.answer_tokens) for turn in session.turns] == [("one", 64), ("two", 64)]


# Table 10 of the paper: ms of a step without and with drafts, and the speedups of its Table 1's
# acceptance lengths that follow.
@pytest.mark.parametrize(
    ("step_ar_ms", "step_sd_ms", "length", "speedup"),
    [(19.6, 25.9, 2.44, 1.85), (20.4, 27.5, 2.44, 1.81), (19.7, 35.3, 2.44, 1.36)],
)
def test_the_projection_of_the_paper_is_kept(
    step_ar_ms: float, step_sd_ms: float, length: float, speedup: float
) -> None:
    assert projected_speedup(step_ar_ms, step_sd_ms, length) == pytest.approx(speedup, abs=0.01)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=80))
def test_the_formula_from_rates_gives_the_mean_length_of_steps(accepted: list[int]) -> None:
    steps = Speculation()
    for count in accepted:
        steps.add_chunk(1 + count)
    mean = 1.0 + sum(accepted) / len(accepted)
    assert acceptance_length(conditional(steps)) == pytest.approx(mean)


def run_of(turns: list[tuple[int, list[int], str]], answer_s: float = 1.0) -> Recorder:
    """Records of (question, lengths of steps, reason); a turn begins when the one before ends."""
    now = {"s": 0.0}
    recorder = Recorder(lambda: now["s"])
    for question, lengths, reason in turns:
        record = recorder.new(question, 0, "", now["s"], 10, sum(lengths))
        record.send()
        record.speculation, record.measured = Speculation(), "engine report"
        for length in lengths:
            now["s"] += answer_s
            record.chunk(length)
            record.speculation.add_chunk(length)
        record.end(reason)
        recorder.ended(record)
    return recorder


QUESTIONS = [
    Question("a", "math", "", ("1",), "", ""),
    Question("b", "math", "", ("1",), "", ""),
    Question("c", "writing", "", ("1", "2"), "", ""),
    Question("d", "writing", "", ("1",), "", ""),
]


def test_lengths_are_means_over_requests_and_not_over_steps_or_categories() -> None:
    done = run_of(
        [(0, [4, 4, 4, 4], ""), (1, [1], ""), (2, [2, 2], ""), (2, [3, 1, 4, 2], ""), (3, [9], "x")]
    )
    report = document(QUESTIONS, done.records, {})
    assert report["request_acceptance_length"] == {"a": 4.0, "b": 1.0, "c": 14 / 6}
    assert report["acceptance_length_by_category"] == {
        "math": {"length": 2.5, "requests": 2},
        "writing": {"length": pytest.approx(14 / 6), "requests": 1},
    }
    assert report["acceptance_length"] == pytest.approx((4.0 + 1.0 + 14 / 6) / 3)
    assert report["length_histogram"] == {1: 2, 2: 3, 3: 1, 4: 5}
    # 11 steps: 9 gave two or more, 6 three or more, 5 four.
    assert report["conditional_acceptance"] == [
        pytest.approx(9 / 11), pytest.approx(6 / 9), pytest.approx(5 / 6)
    ]  # fmt: skip
    joint = report["joint_acceptance"]
    assert isinstance(joint, list)
    assert joint[-1] == pytest.approx(5 / 11)
    assert (report["answered"], report["failed"]) == (3, {"x": 1})


def test_timing_is_that_of_the_paper_s_code() -> None:
    done = run_of([(0, [1, 3, 3], ""), (1, [1, 1, 1, 1], "")])
    report = document(QUESTIONS[:2], done.records, {})
    assert report["output_tokens_per_s"] == pytest.approx(11 / 7.0)
    # (7 - 1) / 2 s and (4 - 1) / 3 s.
    assert report["user_tokens_per_s"] == pytest.approx((3.0 + 1.0) / 2)


def test_a_speedup_needs_the_run_without_drafts() -> None:
    drafts = run_of([(0, [1, 2, 2, 2], ""), (1, [1, 2, 2], "")], answer_s=1.5)
    plain = run_of([(0, [1] * 7, ""), (1, [1] * 5, "")])
    before = document(QUESTIONS[:2], plain.records, {})
    report = document(QUESTIONS[:2], drafts.records, {}, before)
    assert document(QUESTIONS[:2], drafts.records, {})["speedup"] is None
    speedup = report["speedup"]
    assert isinstance(speedup, dict)
    assert speedup["user"] == pytest.approx(2.0 / 1.5)
    assert speedup["output"] == pytest.approx((12 / 10.5) / 1.0)


def test_a_target_that_tells_nothing_of_its_steps_has_no_acceptance() -> None:
    done = run_of([(0, [1, 2], "")])
    for record in done.records:
        record.speculation, record.measured = None, ""
    report = document(QUESTIONS[:1], done.records, {})
    assert report["acceptance_length"] is None
    assert report["acceptance_measured"] is None
    assert report["user_tokens_per_s"] is not None
