"""A spec with several models: each with pools of its own, everything around them shared."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.runtime.router_process import router_config
from orchestrator.runtime.worker_configs import worker_config
from orchestrator.spec import ClusterSpec, SpecError, dump_spec, load_spec, refuse_unbuilt
from router.config import ModelFolder

_TWO = """
model: {path: models/small}
classes: {only: {ttft_ms: 100, itl_ms: 10}}
decode: {max_requests: 4}
more_models:
  - model: {path: models/large, dtype: bfloat16}
    prefill: {engine: vllm, vllm: {python: envs/vllm/bin/python}}
    decode: {engine: vllm, workers: {min: 2}}
"""


def _load(folder: Path, text: str) -> ClusterSpec:
    path = folder / "cluster.yaml"
    path.write_text(text)
    for name in ("small", "large"):
        (folder / "models" / name).mkdir(parents=True, exist_ok=True)
    return load_spec(path)


def test_each_model_has_its_pools_and_all_share_the_rest(tmp_path: Path) -> None:
    spec = _load(tmp_path, _TWO)
    refuse_unbuilt(spec)
    small, large = spec.by_model()
    assert (small.model.name, large.model.name) == ("small", "large")
    assert large.model.path == str(tmp_path / "models" / "large")
    assert (small.decode.max_requests, large.decode.max_requests) == (4, 32)
    assert (small.decode.workers.min, large.decode.workers.min) == (1, 2)
    assert list(small.classes) == list(large.classes) == ["only"]
    worker = worker_config(large, "prefill", None, "c")
    assert (worker.engine, worker.dtype, worker.model_name) == ("vllm", "bfloat16", "large")
    assert worker.interpreter == str(tmp_path / "envs" / "vllm" / "bin" / "python")
    config = router_config(spec, "redis://h:1/0", "c")
    assert config.more_models == (ModelFolder("large", large.model.path),)


def test_it_survives_being_written_and_read(tmp_path: Path) -> None:
    spec = _load(tmp_path, _TWO)
    assert _load(tmp_path, dump_spec(spec)) == spec


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("- model: {path: other/small}", "name small is that of several models"),
        ("- {model: {path: m}, decode: {engine: vllm}}", "set both to vllm, or both to native"),
        ("- {model: {path: m}, router: {http: 'h:1'}}", "router"),
        ("- {prefill: {engine: native}}", "model"),
    ],
)
def test_what_cannot_be_served_is_refused(tmp_path: Path, more: str, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        _load(tmp_path, f"model: {{path: models/small}}\nmore_models:\n  {more}")


@pytest.mark.parametrize(
    ("rest", "says"),
    [
        ("autoscaling: {mode: active}", "autoscaling.mode: active is not built yet"),
        (
            "  - model: {path: m}\n    decode: {workers: {min: 1, max: 3}}",
            "more_models.1.decode.workers.max: 3 is not built yet",
        ),
    ],
)
def test_pools_of_further_models_have_a_fixed_size(tmp_path: Path, rest: str, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        refuse_unbuilt(_load(tmp_path, _TWO + rest))


def test_on_kubernetes_each_model_is_a_resource_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="make another one"):
        refuse_unbuilt(_load(tmp_path, _TWO), operator=True)
