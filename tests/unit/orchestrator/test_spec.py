"""The spec: defaults that work, messages that name the key, and files that survive a round trip."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from orchestrator.runtime.worker_configs import worker_config
from orchestrator.spec import ClusterSpec, SpecError, dump_spec, load_spec, refuse_unbuilt
from workers.config import WorkerConfig


def _problems(text: str, folder: Path) -> tuple[str, ...]:
    path = folder / "cluster.yaml"
    path.write_text(text)
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    return tuple(problem.removeprefix(f"{path}, ") for problem in caught.value.problems)


def test_the_defaults_are_built() -> None:
    spec = ClusterSpec()
    refuse_unbuilt(spec)
    assert spec.model.name == "tandem-tiny"
    assert (spec.router.grpc, spec.router.http) == ("127.0.0.1:50051", "127.0.0.1:8000")
    assert list(spec.classes) == ["interactive", "batch"]
    assert (spec.prefill.workers.min, spec.decode.workers.min) == (1, 1)
    assert spec.store == "embedded"


def test_a_spec_survives_being_written_and_read(tmp_path: Path) -> None:
    spec = load_spec(None, {"prefill.workers": {"min": 2, "max": 3}, "store": "redis://h:6379/1"})
    path = tmp_path / "cluster.yaml"
    path.write_text(dump_spec(spec))
    assert load_spec(path) == spec


def test_the_shape_of_the_design_is_accepted_by_the_schema(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(
        """
model: {path: workers/checkpoints/tandem-tiny, name: tandem-tiny}
store: embedded
classes:
  interactive: {ttft_ms: 500, itl_ms: 40, weight: 4}
  batch: {ttft_ms: 10000, itl_ms: 200, weight: 1}
prefill:
  engine: native
  layout: {tp: 1}
  workers: {min: 1, max: 4}
  resources: {cpu: 1, gpu: 0}
decode:
  engine: native
  layout: {kvp: 2, tpa: 1, ep: 2, tpf: 1}
  draft_tokens: auto
  workers: {min: 1, max: 4}
  resources: {cpu: 1, gpu: 0}
router: {processes: 1, grpc: "127.0.0.1:50051", http: "127.0.0.1:8000"}
autoscaling: {mode: active, period_s: 5, role_flip: true}
telemetry: {otlp: null, trace_file: null}
security: {tls: null, api_keys: null}
"""
    )
    spec = load_spec(path)
    assert spec.decode.layout.ranks == 2
    refuse_unbuilt(spec)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("decod:\n  workers: {min: 1}", "line 1: unknown key 'decod'; did you mean 'decode'?"),
        (
            "decode:\n  layout: {kpv: 1}",
            "line 2: unknown key 'decode.layout.kpv'; did you mean 'kvp'?",
        ),
        (
            "classes:\n  chat: {ttft_ms: 1, itl_ms: 1, wieght: 2}",
            "line 2: unknown key 'classes.chat.wieght'; did you mean 'weight'?",
        ),
        (
            "security: {zzz: 1}",
            "line 1: unknown key 'security.zzz'; known here: api_keys, tls",
        ),
        (
            "decode:\n  workers: {min: 3, max: 2}",
            "line 2: decode.workers: min 3 must not be above max 2",
        ),
        (
            "decode: {workers: {min: 0}}",
            "line 1: decode.workers: min must be at least 1: "
            "nothing can be answered without a decoder",
        ),
        (
            "decode:\n  layout: {kvp: 2, tpa: 2, ep: 2, tpf: 1}",
            "line 2: decode.layout: kvp x tpa = 2 x 2 = 4 must equal tpf x ep = 1 x 2 = 2: "
            "attention and experts use the same ranks",
        ),
        (
            "decode: {draft_tokens: 8}",
            "line 1: decode.draft_tokens is 8: must be auto, or a number from 0 to 7",
        ),
        (
            "router: {grpc: localhost}",
            "line 1: router.grpc is 'localhost': must be host:port with a port from 0 to 65535, "
            "such as 127.0.0.1:50051",
        ),
        (
            "router:\n  grpc: 'a:1'\n  http: 'a:1'",
            "line 1: router: grpc and http cannot both listen on a:1",
        ),
        (
            "store: mysql://x",
            "line 1: store is 'mysql://x': must be embedded, or a URL such as redis://host:6379/0",
        ),
        (
            "ray: {address: somewhere}",
            "line 1: ray.address is 'somewhere': must be host:port with a port from 0 to 65535, "
            "such as 127.0.0.1:50051",
        ),
        (
            "ray: {decode_on: big}",
            "line 1: ray: decode_on big: our own Ray has no such resource; set address to that of "
            "a Ray whose nodes have it",
        ),
        ("prefill:", "line 1: prefill must be a mapping of keys and values"),
        ("store: embedded\nstore: embedded", "line 2: key 'store' is already on line 1"),
        ("a: [1", "line 1, column 6: expected ',' or ']', but got '<stream end>'"),
    ],
)
def test_a_fault_is_named_with_its_line_and_the_fix(
    text: str, problem: str, tmp_path: Path
) -> None:
    assert _problems(text, tmp_path) == (problem,)


def test_workers_on_other_machines_need_a_store_that_these_reach() -> None:
    with pytest.raises(SpecError, match="workers may be on others"):
        load_spec(None, {"ray.address": "10.0.0.1:6379"})


def test_every_fault_of_a_file_is_told_at_once(tmp_path: Path) -> None:
    assert len(_problems("decod: 1\nstor: 2\nrouter: {processes: 0}", tmp_path)) == 3


def test_a_file_that_is_no_mapping_or_not_there_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    path.write_text("- a")
    with pytest.raises(SpecError, match="is a mapping of keys"):
        load_spec(path)
    with pytest.raises(SpecError, match="No such file"):
        load_spec(tmp_path / "none.yaml")


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing\n")
    assert load_spec(path) == load_spec()


def test_a_bare_off_is_not_read_as_false(tmp_path: Path) -> None:
    path = tmp_path / "off.yaml"
    path.write_text("autoscaling: {mode: off}")
    assert load_spec(path).autoscaling.mode == "off"


def test_a_fault_in_a_flag_names_the_flag() -> None:
    with pytest.raises(SpecError, match=r"^--grpc: router\.grpc is 'here'"):
        load_spec(None, {"router.grpc": "here"}, {"router.grpc": "--grpc"})


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("decode.resources.gpu", 2, "set decode.resources.gpu: 1"),
    ],
)
def test_what_is_not_built_is_refused_with_what_to_set_instead(
    field: str, value: object, says: str
) -> None:
    spec = load_spec(None, {field: value})
    with pytest.raises(SpecError) as caught:
        refuse_unbuilt(spec)
    (problem,) = caught.value.problems
    assert says in problem


def test_a_spec_holds_digests_of_keys_and_messages_hold_no_key() -> None:
    key = "a key of twenty letters"
    spec = load_spec(None, {"security.api_keys": {"alice": key}})
    assert spec.security.api_keys is not None
    digest = hashlib.sha256(key.encode()).hexdigest()
    assert spec.security.api_keys["alice"] == f"sha256:{digest}"
    assert key not in dump_spec(spec)
    assert ClusterSpec.model_validate(yaml.safe_load(dump_spec(spec))) == spec
    for wrong in ("short secret", "sha256:12"):
        with pytest.raises(SpecError) as caught:
            load_spec(None, {"security.api_keys": {"alice": wrong}})
        assert "security.api_keys.alice" in str(caught.value)
        assert wrong not in str(caught.value)


def test_files_of_tls_count_from_the_spec(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text("security: {tls: {cert: tls/cert.pem, key: /abs/key.pem}}")
    tls = load_spec(path).security.tls
    assert tls is not None
    assert (tls.cert, tls.key) == (str(tmp_path / "tls" / "cert.pem"), "/abs/key.pem")
    assert tls.client_ca is None


def test_simulated_workers_only_hand_over_to_simulated_ones() -> None:
    both = {"prefill.engine": "simulated", "decode.engine": "simulated"}
    refuse_unbuilt(load_spec(None, both))
    with pytest.raises(SpecError, match="set both to simulated"):
        load_spec(None, {"decode.engine": "simulated"})


_VLLM = {"prefill.engine": "vllm", "decode.engine": "vllm"}


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_vllm_workers_only_hand_over_to_their_like(role: str) -> None:
    refuse_unbuilt(load_spec(None, _VLLM))
    with pytest.raises(SpecError, match="its own connector; set both to"):
        load_spec(None, {f"{role}.engine": "vllm"})


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"decode.layout": {"kvp": 2, "tpa": 2, "tpf": 4}}, "decode_context_parallel_size"),
        ({"decode.layout": {"tpa": 4, "ep": 2, "tpf": 2}}, "--enable-expert-parallel"),
        (
            {"prefill.layout.tp": 2, "decode.layout": {"tpa": 3, "tpf": 3}},
            "one to be a multiple of the other",
        ),
        ({"prefill.vllm.args": ["--port=1"]}, "--port follows from router.http"),
        ({"decode.vllm.args": ["--max_num_seqs=9"]}, "follows from max_requests"),
    ],
)
def test_what_vllm_asserts_against_is_refused_before_anything_starts(
    fields: dict[str, object], says: str
) -> None:
    with pytest.raises(SpecError, match=says):
        load_spec(None, {**_VLLM, **fields})


def test_vllm_takes_tensor_parallel_pools_of_different_sizes_and_its_own_arguments() -> None:
    spec = load_spec(
        None,
        {
            **_VLLM,
            "prefill.layout.tp": 4,
            "prefill.vllm.args": ["--max-num-batched-tokens=16384"],
            "decode.layout": {"tpa": 2, "ep": 2},
            "decode.vllm.python": "/opt/vllm/bin/python",
        },
    )
    prefill = worker_config(spec, "prefill", None, "c")
    decode = worker_config(spec, "decode", None, "c")
    assert (prefill.vllm_args, prefill.interpreter) == (("--max-num-batched-tokens=16384",), "")
    assert decode.interpreter == "/opt/vllm/bin/python"
    assert WorkerConfig.from_json(prefill.to_json()) == prefill


def test_what_is_not_built_is_named_by_its_flag_where_a_flag_set_it() -> None:
    spec = load_spec(None, {"decode.resources.gpu": 2})
    with pytest.raises(SpecError, match=r"^--gpus 2 is not built yet: .*; set --gpus 1"):
        refuse_unbuilt(spec, {"decode.resources.gpu": "--gpus"})


@pytest.mark.parametrize("prefill_workers", [0, 1])
def test_groups_of_ranks_are_built_with_and_without_a_hand_off(prefill_workers: int) -> None:
    fields: dict[str, object] = {
        "prefill.workers.min": prefill_workers,
        "prefill.layout.tp": 2,
        "decode.layout.kvp": 2,
        "decode.layout.ep": 2,
    }
    refuse_unbuilt(load_spec(None, fields))


def test_a_model_is_found_from_the_file_then_from_the_package(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text("model: {path: models/small}")
    (tmp_path / "models" / "small").mkdir(parents=True)
    spec = load_spec(path)
    assert spec.model.path == str(tmp_path / "models" / "small")
    assert spec.model.name == "small"
    assert load_spec(None, {"model.path": f"{tmp_path}/models/small/."}).model.name == "small"
    path.write_text("store: embedded")
    assert Path(load_spec(path).model.path).parts[-3:] == ("workers", "checkpoints", "tandem-tiny")


def test_a_pool_fixed_by_min_alone_needs_no_max() -> None:
    spec = load_spec(None, {"prefill.workers.min": 3, "decode.workers.min": 2})
    assert (spec.prefill.workers.max, spec.decode.workers.max) == (3, 2)
    assert load_spec(None, {"prefill.workers.min": 0}).prefill.workers.min == 0


def test_the_spec_and_the_commands_load_without_torch_or_ray() -> None:
    code = (
        "import sys, orchestrator.spec, orchestrator.cli.main\n"
        "import orchestrator.cli.locate, orchestrator.client\n"
        "assert not {'torch', 'ray', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
