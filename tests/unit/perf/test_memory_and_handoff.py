"""Memory and hand-off count KV where there is KV, and state where there is state."""

from __future__ import annotations

import numpy as np
import pytest

from workers.perf.handoff import (
    egress_bytes_per_s,
    exposed_s,
    ingress_bytes_per_s,
    prompts_per_s,
    sharding_devices,
    transfer_of,
)
from workers.perf.hardware import known_hardware
from workers.perf.known_models import known_model
from workers.perf.layouts import Layout, Layouts
from workers.perf.memory import largest_batch, sequence_bytes, state_bytes, weight_bytes
from workers.perf.precision import precision_named

_SUPER = known_model("nemotron-3-super")
_NVFP4 = precision_named("nvfp4")


def test_a_hybrid_model_keeps_little_kv_and_constant_state() -> None:
    short, long = (sequence_bytes(_SUPER, _NVFP4, tokens) for tokens in (1.0, 2.0**20))
    assert long.kv == 4096 * 2**20
    assert short.state == long.state == 41_943_040 * 4 + 1_228_800 * 2


def test_a_window_bounds_what_its_layers_keep() -> None:
    model, precision = known_model("gpt-oss-120b"), precision_named("mxfp4")
    at_window = sequence_bytes(model, precision, 128.0).kv
    far = sequence_bytes(model, precision, 1280.0).kv
    assert far == pytest.approx(at_window * (1 + 10) / 2)


def test_the_published_release_of_nemotron_super_takes_its_bytes() -> None:
    weights = weight_bytes(_SUPER, Layouts.of([Layout()]), _NVFP4)
    assert float(weights[0]) == pytest.approx(80_297_329_824, rel=0.01)


def test_uniform_weights_take_their_size_on_one_device() -> None:
    model = known_model("llama-3.1-8b")
    weights = weight_bytes(model, Layouts.of([Layout()]), precision_named("bf16"))
    assert float(weights[0]) == pytest.approx(2 * model.parameters, rel=1e-6)


@pytest.mark.parametrize(
    "layout", [Layout(tpa=2, tpf=2), Layout(kvp=2, ep=2), Layout(dp=2, ep=2), Layout(pp=2)]
)
def test_two_devices_hold_at_least_half_and_less_than_all(layout: Layout) -> None:
    both = Layouts.of([Layout(), layout])
    alone, shared = weight_bytes(_SUPER, both, _NVFP4)
    assert alone / 2 <= shared < alone


def test_kvp_shares_tokens_where_tensor_parallelism_repeats_them() -> None:
    layouts = Layouts.of([Layout(tpa=2, tpf=2), Layout(tpa=8, tpf=8), Layout(kvp=4, tpa=2, tpf=8)])
    model = known_model("nemotron-3-super")
    tokens = 1e6
    kv = state_bytes(model, layouts, _NVFP4, tokens) - state_bytes(model, layouts, _NVFP4, 0.0)
    assert kv[1] == pytest.approx(kv[0])
    assert kv[2] == pytest.approx(kv[0] / 4)


def test_a_batch_is_whole_for_every_data_parallel_group() -> None:
    layouts = Layouts.of([Layout(dp=4, ep=4), Layout()])
    most = largest_batch(np.array([35.0, -1.0]), np.array([10.0, 10.0]), layouts)
    assert list(most) == [12.0, 0.0]


def test_only_devices_that_uniquely_hold_kv_share_a_transfer() -> None:
    layouts = Layouts.of([Layout(tpa=8, tpf=8), Layout(kvp=4, tpa=2, ep=8), Layout(pp=2)])
    assert list(sharding_devices(_SUPER, layouts)) == [2.0, 8.0, 2.0]
    assert list(sharding_devices(known_model("deepseek-r1"), layouts)) == [1.0, 4.0, 2.0]


def test_egress_and_ingress_are_the_same_flow_when_rates_match() -> None:
    held = 1e9
    egress = egress_bytes_per_s(held, np.array(4.0), np.array(2.0), np.array(2.0))
    # Two prompts a second: 300 sequences of 1,500 tokens at 10 tokens a second each.
    ingress = ingress_bytes_per_s(held, np.array(300.0), np.array(0.1), 1500.0, np.array(2.0))
    assert float(egress) == pytest.approx(float(ingress)) == pytest.approx(1e9)


def test_recurrent_state_and_the_last_chunk_come_late() -> None:
    held = sequence_bytes(_SUPER, _NVFP4, 8192.0)
    transfer = transfer_of(held, 0.25)
    assert transfer.total_bytes == pytest.approx(held.total)
    assert transfer.late_bytes == pytest.approx(held.state + (held.kv + held.draft) / 4)


def test_what_was_sent_while_reading_delays_nothing() -> None:
    hardware = known_hardware("h200")
    transfer = transfer_of(sequence_bytes(_SUPER, _NVFP4, 1e5), 0.01)
    one = np.ones(1)
    slow, quick = (
        float(exposed_s(transfer, np.array([read_s]), hardware, 1.0, one)[0])
        for read_s in (0.0, 60.0)
    )
    assert quick == pytest.approx(5e-6 + transfer.late_bytes / 50e9)
    assert slow == pytest.approx(5e-6 + transfer.total_bytes / 50e9)


def test_links_carry_prompts_in_proportion_to_devices() -> None:
    hardware = known_hardware("h200")
    assert list(prompts_per_s(5e9, hardware, 0.5, np.array([1.0, 4.0]))) == [5.0, 20.0]
