"""What the spec means for workers and for the router."""

from __future__ import annotations

from orchestrator.runtime.placement import Placement
from orchestrator.runtime.router_process import router_config
from orchestrator.runtime.worker_configs import worker_config
from orchestrator.spec import load_spec
from router.config import RouterConfig
from workers.config import WorkerConfig
from workers.parallel.layout import ParallelLayout


def test_a_worker_is_told_what_its_pool_says() -> None:
    spec = load_spec(
        None,
        {
            "model.name": "m",
            "model.dtype": "bfloat16",
            "decode.kv_tokens": 1024,
            "decode.max_requests": 3,
            "decode.resources.cpu": 2,
            "telemetry.otlp": "http://o:4317",
        },
    )
    config = worker_config(spec, "decode", "redis://s", "c")
    assert (config.role, config.model_name, config.dtype) == ("decode", "m", "bfloat16")
    assert (config.kv_tokens, config.max_requests, config.threads) == (1024, 3, 2)
    assert (config.store_url, config.cluster) == ("redis://s", "c")
    assert config.trace.otlp_endpoint == "http://o:4317"
    assert config.device == "cpu"
    assert WorkerConfig.from_json(config.to_json()) == config
    assert worker_config(spec, "prefill", None, "c").kv_tokens == 65536


def test_a_decode_worker_is_told_its_layout() -> None:
    layout = {"kvp": 2, "tpa": 2, "ep": 4, "interleave": 8, "hop_b": False}
    spec = load_spec(None, {f"decode.layout.{name}": value for name, value in layout.items()})
    config = worker_config(spec, "decode", None, "c")
    assert config.parallel == ParallelLayout(kvp=2, tpa=2, tpf=1, ep=4, interleave=8)
    assert not config.hop_b
    assert worker_config(spec, "prefill", None, "c").parallel.size == 1


def test_a_worker_is_placed_with_all_its_ranks_and_where_the_spec_says() -> None:
    alone = Placement.of(load_spec(), "prefill")
    assert alone.actor_options == {"num_cpus": 1, "num_gpus": 0}
    assert alone.bundles is None
    spec = load_spec(
        None,
        {
            "store": "redis://10.0.0.1:7000/0",
            "ray.address": "10.0.0.1:6379",
            "ray.decode_on": "big",
            "decode.layout.kvp": 2,
            "decode.layout.ep": 2,
            "decode.resources.gpu": 1,
        },
    )
    group = Placement.of(spec, "decode")
    assert group.actor_options == {"num_cpus": 2, "num_gpus": 2, "resources": {"big": 1}}
    assert group.bundles == [{"CPU": 2, "GPU": 2, "big": 1}]
    assert Placement.of(spec, "prefill").place_on is None


def test_a_prefill_worker_is_tensor_parallel() -> None:
    config = worker_config(load_spec(None, {"prefill.layout.tp": 2}), "prefill", None, "c")
    assert config.parallel == ParallelLayout.tensor_parallel(2)


def test_a_worker_with_a_gpu_uses_it() -> None:
    spec = load_spec(None, {"decode.resources.gpu": 1})
    assert worker_config(spec, "decode", None, "c").device == "cuda"
    assert worker_config(spec, "prefill", None, "c").device == "cpu"


def test_every_start_of_a_worker_has_its_own_id() -> None:
    spec = load_spec()
    ids = {worker_config(spec, "prefill", None, "c").worker_id for _ in range(20)}
    assert len(ids) == 20
    assert all(worker_id.startswith("prefill-") for worker_id in ids)


def test_the_router_is_told_addresses_and_classes_in_their_order() -> None:
    spec = load_spec(None, {"router.grpc": "127.0.0.1:0"})
    config = router_config(spec, "redis://s", "c")
    assert (config.grpc, config.http) == ("127.0.0.1:0", "127.0.0.1:8000")
    assert [(c.name, c.ttft_ms, c.itl_ms, c.weight) for c in config.classes] == [
        ("interactive", 500.0, 40.0, 4.0),
        ("batch", 10000.0, 200.0, 1.0),
    ]
    assert RouterConfig.from_json(config.to_json()) == config
