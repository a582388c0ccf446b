"""AIConfigurator's tables are read by their columns, and fits recover what made them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow
import pytest
from pyarrow.parquet import write_table
from typer.testing import CliRunner

from orchestrator.calibration.table_fit import fit_tables
from orchestrator.calibration.tables import read_tables
from orchestrator.cli.main import app
from orchestrator.planner.profile import read_profile
from workers.perf.errors import PerfError
from workers.perf.hardware import known_hardware

_H200 = known_hardware("h200")
_COMPUTE, _MEMORY, _CONSTANT_S = 0.6, 0.7, 5e-6
_LINK, _LATENCY_S = 0.5, 4e-6


def _ms(flops: float, moved_bytes: float, math: str) -> float:
    compute_s = flops / (_H200.flops_per_s["fp8" if math == "fp8" else "bf16"] * _COMPUTE)
    memory_s = moved_bytes / (_H200.memory_bytes_per_s * _MEMORY)
    return 1e3 * (max(compute_s, memory_s) + _CONSTANT_S)


def _gemm() -> list[dict[str, object]]:
    return [
        {"gemm_dtype": dtype, "m": m, "n": n, "k": k}
        | {"latency": _ms(2.0 * m * n * k, n * k * size, math)}
        for (dtype, size, math), m, n, k in itertools.product(
            (("bfloat16", 2.0, "bf16"), ("fp8", 1.0, "fp8")),
            (1, 16, 256, 4096),
            (1024, 8192),
            (2048, 16384),
        )
    ]


def _attention(operation: str) -> list[dict[str, object]]:
    reads = operation == "context_attention"
    rows = []
    for batch, length, window in itertools.product((1, 8, 64), (128, 2048, 16384), (0, 1024)):
        isl, step = (length, 0) if reads else (1, length - 1)
        reach = min(length / 2 if reads else length, window or 1e9)
        flops = 4.0 * 32 * 128 * batch * isl * reach
        moved = batch * reach * 2.0 * 8 * 128 * 2.0
        rows.append(
            {
                "batch_size": batch,
                "isl": isl,
                "step": step,
                "num_heads": 32,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "window_size": window,
                "attn_dtype": "bfloat16",
                "kv_cache_dtype": "bfloat16",
                "latency": _ms(flops, moved, "bf16"),
            }
        )
    return rows


def _moe() -> list[dict[str, object]]:
    """Of Qwen3-235B; and rows that are of no use, far off."""
    rows: list[dict[str, object]] = []
    for tokens, (ep, hidden, distribution) in itertools.product(
        (1, 8, 64, 512, 4096, 16384),
        (
            (1, 4096, "balanced"),
            (8, 4096, "balanced"),
            (1, 4096, "power_law_1.2"),
            (1, 99, "balanced"),
        ),
    ):
        expert = 3.0 * 4096 * 1536
        met = 128 * (1.0 - (1.0 - 8 / 128) ** tokens)
        is_used = ep == 1 and hidden == 4096 and distribution == "balanced"
        latency = _ms(2.0 * tokens * 8 * expert, met * expert * 2.0, "bf16")
        rows.append(
            {
                "moe_dtype": "bfloat16",
                "num_tokens": tokens,
                "hidden_size": hidden,
                "inter_size": 1536,
                "topk": 8,
                "num_experts": 128,
                "moe_tp_size": 1,
                "moe_ep_size": ep,
                "distribution": distribution,
                "latency": latency if is_used else 1e6,
            }
        )
    return rows


def _reductions() -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    bandwidth = _H200.scale_up_bytes_per_s * _LINK
    for ranks, power in itertools.product((2, 4, 8), range(7, 28)):
        size = 2.0 * 2**power
        once_s = _LATENCY_S + size * (ranks - 1) / bandwidth
        twice_s = 2 * _LATENCY_S + 2 * size * (ranks - 1) / (ranks * bandwidth)
        for source, slower in (("vLLM_custom_graph", 1.0), ("vLLM_custom_eager", 9.0)):
            rows.append(
                {
                    "num_gpus": ranks,
                    "message_size": 2**power,
                    "allreduce_dtype": "bfloat16",
                    "kernel_source": source,
                    "latency": 1e3 * slower * min(once_s, twice_s),
                }
            )
    return rows


def _write(folder: Path, name: str, rows: Sequence[Mapping[str, object]]) -> Path:
    every = {"framework": "VLLM", "version": "0.24.0", "device": "NVIDIA H200"}
    path = folder / f"{name}_perf.parquet"
    write_table(pyarrow.Table.from_pylist([{**every, **row} for row in rows]), path)
    return path


def _write_all(folder: Path) -> None:
    _write(folder, "gemm", _gemm())
    for name in ("context_attention", "generation_attention"):
        _write(folder, name, _attention(name))
    _write(folder, "moe", _moe())
    _write(folder, "custom_allreduce", _reductions())
    _write(folder, "mla_bmm", [{"anything": 1}])


def test_fits_recover_the_shares_that_made_the_tables(tmp_path: Path) -> None:
    _write_all(tmp_path)
    found = fit_tables(read_tables([tmp_path]), _H200)
    efficiency = found.profile.efficiency
    for kind in ("projections", "head", "attention", "experts"):
        assert efficiency.compute[kind] == pytest.approx(_COMPUTE, rel=0.02), kind
        assert efficiency.memory[kind] == pytest.approx(_MEMORY, rel=0.02), kind
        assert efficiency.least_s(kind) == pytest.approx(_CONSTANT_S, rel=0.02), kind
    assert efficiency.link == pytest.approx(_LINK, rel=0.02)
    assert found.profile.hardware.scale_up_latency_s == pytest.approx(_LATENCY_S, rel=0.05)
    assert efficiency.error is not None
    assert efficiency.error < 0.01
    assert set(found.errors) == {
        "gemm",
        "context_attention",
        "generation_attention",
        "moe",
        "custom_allreduce",
    }


def test_the_command_writes_a_profile_that_plans_use(tmp_path: Path) -> None:
    _write_all(tmp_path)
    output = tmp_path / "profile.json"
    flags = ["--aiconfigurator", str(tmp_path), "--hardware", "h200", "--output", str(output)]
    result = CliRunner().invoke(app, ["calibrate", *flags])
    assert result.exit_code == 0, result.output
    assert "gemm 0%" in result.stdout
    assert read_profile(output).efficiency.least_s("experts") == pytest.approx(
        _CONSTANT_S, rel=0.02
    )
    plan = ["plan", "--model", "llama-3.1-70b", "--gpus", "8", "--isl", "2000", "--osl", "200"]
    answer = CliRunner().invoke(app, [*plan, "--profile", str(output), "--json"])
    assert answer.exit_code == 0, answer.output
    assert json.loads(answer.stdout)["error_estimate"] < 0.01


def test_other_columns_are_refused_by_name(tmp_path: Path) -> None:
    rows = [{**row, "k_dim": row["k"]} for row in _gemm()]
    for row in rows:
        del row["k"]
    path = _write(tmp_path, "gemm", rows)
    with pytest.raises(PerfError, match=r"columns k of a gemm table are missing; it has .*k_dim"):
        read_tables([path])


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    pointer = tmp_path / "gemm_perf.parquet"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(PerfError, match="Git LFS pointer"):
        read_tables([pointer])
    with pytest.raises(PerfError, match="not one of the tables that can be used"):
        read_tables([tmp_path / "mla_bmm_perf.parquet"])
    with pytest.raises(PerfError, match="no table that is known"):
        read_tables([empty])


def test_tables_of_another_device_are_refused(tmp_path: Path) -> None:
    path = _write(tmp_path, "gemm", _gemm())
    with pytest.raises(PerfError, match="it is of NVIDIA H200, and --hardware says gb200"):
        fit_tables(read_tables([path]), known_hardware("gb200"))


def test_two_tables_of_one_operation_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    paths = [_write(folder, "gemm", _gemm()) for folder in (tmp_path, other)]
    with pytest.raises(PerfError, match="is a gemm table already"):
        read_tables(paths)
