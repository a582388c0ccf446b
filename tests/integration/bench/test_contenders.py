"""Real contenders in their processes: they answer, are compared, and fail with a reason."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.bench.engine.lineup import Demand, Entry, Lineup, lineup
from orchestrator.bench.engine.prefix import measure_prefix
from orchestrator.bench.engine.speeds import measure_speeds
from orchestrator.bench.engine.steps import measure_overhead
from orchestrator.bench.messages import Load, Profile, Run
from orchestrator.bench.models import HybridShape, made_model
from orchestrator.bench.process import Contender, ContenderFailed, own_command

_SHAPE = HybridShape(
    hybrid_override_pattern="M-*",
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    mamba_num_heads=4,
    mamba_head_dim=16,
    n_groups=1,
    ssm_state_size=16,
    conv_kernel=4,
    chunk_size=16,
)


def _ignore(message: str) -> None:
    """Progress is of no interest here."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_model("small", _SHAPE, tmp_path_factory.mktemp("models"))


@pytest.fixture
def here(folder: Path, tmp_path: Path) -> Iterator[Lineup]:
    entries = [
        Entry("native k=0", "native"),
        Entry("transformers", "transformers"),
        Entry("vllm", "vllm"),
    ]
    with lineup(
        "small",
        folder,
        entries,
        Demand(requests=4, request_tokens=64, step_tokens=512),
        dtypes=("float32",),
        absent={},
        vllm_python=tmp_path / "no-python",
        logs=tmp_path,
        report=_ignore,
    ) as started:
        yield started


def test_contenders_are_measured_side_by_side_and_absent_ones_say_why(here: Lineup) -> None:
    natives, peers = [("native k=0", 0)], ["transformers", "vllm"]
    table = measure_speeds(here, natives, peers, (1, 3), 16, 5, 1, _ignore)
    assert [(row.contender, row.batch) for row in table.rows] == [
        (name, batch) for batch in (1, 3) for name in ("native k=0", "transformers", "vllm")
    ]
    for row in table.rows:
        if row.contender == "vllm":
            assert row.why is not None
            assert "No such file" in row.why
            continue
        assert row.why is None
        assert row.dtype == "float32"
        assert row.decode_tokens_per_s is not None
        assert row.decode_tokens_per_s > 0
        assert row.peak_bytes is not None
        assert row.peak_bytes > 2**20
    assert table.decode_ratio(3, "native k=0", "transformers") is not None
    assert table.decode_ratio(3, "native k=0", "vllm") is None

    prefix = measure_prefix(here, "native k=0", 40, 48, 1)
    assert (prefix.cached_tokens, prefix.why) == (40, None)
    overhead = measure_overhead(here, "native k=0", 2, 16, 2, 1)
    assert overhead.outside_share is not None
    assert 0 < overhead.outside_share < 1


def test_a_contender_that_cannot_do_something_says_so_and_lives_on(
    folder: Path, tmp_path: Path
) -> None:
    contender = Contender(own_command("transformers"), tmp_path / "log")
    try:
        load = Load(
            model=str(folder),
            dtype="float32",
            max_requests=1,
            max_request_tokens=8,
            kv_tokens=8,
            state_bytes=0,
            step_tokens=8,
        )
        contender.load(load)
        with pytest.raises(ContenderFailed, match="transformers is not asked to profile"):
            contender.profile(Profile(prompts=[[1]], steps=1))
        timeline = contender.run(
            Run(prompts=[[1, 2], [3, 4], [5, 6]], output_tokens=[1, 3, 2], static_batch=2)
        )
        assert [sum(column) for column in zip(*timeline.tokens, strict=True)] == [1, 3, 2]
        assert len(timeline.elapsed_s) == 3 + 2
    finally:
        contender.close()


def test_a_process_that_ends_is_told_with_its_last_words(tmp_path: Path) -> None:
    ends = [sys.executable, "-c", "import sys; sys.exit('out of luck')"]
    contender = Contender(ends, tmp_path / "log")
    try:
        with pytest.raises(ContenderFailed, match="its process ended: out of luck"):
            contender.run(Run(prompts=[[1]], output_tokens=[1]))
    finally:
        contender.close()
