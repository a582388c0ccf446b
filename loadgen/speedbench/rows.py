"""Reads the questions of SPEED-Bench: the published parquet files, or JSON lines of that schema."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadgen.errors import LoadError

SAMPLE = Path(__file__).parent / "sample.jsonl"
# What the published rows hold instead of text whose licence forbids copying it.
PLACEHOLDER = "FULL BENCHMARK DATA SHOULD BE FETCHED FROM THE SOURCE USING SPECDEC_BENCH"
_PREPARE = (
    "prepare it where there is a network: git clone https://github.com/NVIDIA/Model-Optimizer; in "
    "its examples/specdec_bench: pip install -r requirements_speed.txt && python prepare_data.py "
    "--dataset speed --config all; then name the parquet file that this writes with --data"
)
_NEEDED = ("question_id", "category", "turns")


@dataclass(frozen=True, slots=True)
class Question:
    """One row; `turns` are what the user says, in order."""

    question_id: str
    category: str
    sub_category: str
    turns: tuple[str, ...]
    source: str
    difficulty: str


def read_questions(path: Path, config: str = "") -> list[Question]:
    """The rows of a file, or of the files of a folder whose path has `config` in it.

    Raises:
        LoadError: not readable, not of this schema, with placeholders instead of text, or of
            several configs.
    """
    files = _files(path, config)
    questions = [_question(file, row) for file in files for row in _rows(file)]
    if not questions:
        raise LoadError(f"--data {path}: has no rows")
    empty = sum(any(PLACEHOLDER in turn for turn in one.turns) for one in questions)
    if empty:
        raise LoadError(
            f"--data {path}: {empty} of {len(questions)} rows are placeholders: the published "
            "files leave out text that has to be fetched from its source",
            _PREPARE,
        )
    return questions


def select(
    questions: Sequence[Question], categories: Sequence[str], per_category: int | None
) -> list[Question]:
    """Those of some categories (all when none is named), the first so many of each.

    Raises LoadError for a category that no row has.
    """
    known = dict.fromkeys(question.category for question in questions)
    wanted = {name.lower() for name in categories}
    unknown = wanted - {name.lower() for name in known}
    if unknown:
        raise LoadError(
            f"--categories {', '.join(sorted(unknown))}: not in the data; it has {', '.join(known)}"
        )
    taken: dict[str, int] = {}
    chosen = []
    for question in questions:
        if wanted and question.category.lower() not in wanted:
            continue
        taken[question.category] = taken.get(question.category, 0) + 1
        if per_category is None or taken[question.category] <= per_category:
            chosen.append(question)
    return chosen


def _files(path: Path, config: str) -> list[Path]:
    if path.is_dir():
        found = sorted(file for file in path.rglob("*.parquet") if config in str(file))
        if not found:
            raise LoadError(
                f"--data {path}: has no parquet file" + f" of {config!r}" * bool(config)
            )
        configs = dict.fromkeys(file.parent.name for file in found)
        if len(configs) > 1:
            raise LoadError(
                f"--data {path}: has several configs: {', '.join(configs)}",
                f"a mean over them would say nothing; choose one: --config {next(iter(configs))}",
            )
        return found
    if not path.is_file():
        raise LoadError(f"--data {path}: there is no such file", _PREPARE)
    return [path]


def _rows(file: Path) -> Iterable[Mapping[str, object]]:
    if file.suffix == ".parquet":
        return _parquet(file)
    try:
        with file.open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise LoadError(f"--data {file}: cannot be read: {error}") from error


def _parquet(file: Path) -> Iterable[Mapping[str, object]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise LoadError(
            f"--data {file}: reading parquet needs pyarrow",
            "pip install 'tandem-serve[speed-bench]'",
        ) from error
    try:
        rows: list[Mapping[str, object]] = parquet.read_table(file).to_pylist()
        return rows
    except (OSError, ArrowException) as error:
        raise LoadError(f"--data {file}: cannot be read: {error}") from error


def _question(file: Path, row: Mapping[str, object]) -> Question:
    missing = [name for name in _NEEDED if row.get(name) is None]
    turns = row.get("turns")
    if missing or not isinstance(turns, list) or not turns:
        problem = f"lacks {', '.join(missing)}" if missing else "turns is no list of texts"
        raise LoadError(
            f"--data {file}: row {row.get('question_id', '?')!r} {problem}",
            "expected the schema of nvidia/SPEED-Bench: question_id, category, sub_category, "
            "turns, source, src_id, difficulty, multiturn",
        )
    return Question(
        str(row["question_id"]),
        str(row["category"]),
        str(row.get("sub_category") or ""),
        tuple(str(turn) for turn in turns),
        str(row.get("source") or ""),
        str(row.get("difficulty") or ""),
    )
