"""Forward passes scale with layouts as the arithmetic of sharding says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.perf.cases import ideal, phase
from workers.perf.arrays import Floats
from workers.perf.collectives import Links, overlapped_s
from workers.perf.engine_times import PhaseModel
from workers.perf.errors import PerfError
from workers.perf.hardware import KNOWN_HARDWARE, known_hardware
from workers.perf.layouts import Layout, Layouts
from workers.perf.precision import precision_named

_SEQUENCES = st.integers(1, 512).map(float)
_CONTEXTS = st.integers(1, 300_000).map(float)


def _step(model: PhaseModel, layouts: list[Layout], sequences: float, context: float) -> Floats:
    return model.step(
        Layouts.of(layouts), np.array(sequences), np.array(context), np.array(0.0)
    ).step_s


@given(_SEQUENCES, _CONTEXTS)
def test_a_step_is_never_quicker_with_more_to_do(sequences: float, context: float) -> None:
    model = phase()
    layouts = [Layout(), Layout(kvp=4, tpa=2, ep=8, hopb=True), Layout(dp=8, ep=8)]
    base = _step(model, layouts, sequences, context)
    assert np.all(_step(model, layouts, sequences + 8.0, context) >= base)
    assert np.all(_step(model, layouts, sequences, context + 1000.0) >= base)


@given(_SEQUENCES, _CONTEXTS)
def test_overlap_never_costs_time(sequences: float, context: float) -> None:
    layouts = [Layout(kvp=8, tpa=2, ep=16), Layout(kvp=8, tpa=2, ep=16, hopb=True)]
    plain, overlapped = _step(phase(), layouts, sequences, context)
    assert overlapped <= plain


def test_one_device_waits_for_no_link() -> None:
    step = phase().step(
        Layouts.of([Layout()]), np.array(8.0), np.array(1e4), np.array(0.0), detailed=True
    )
    linked = [np.sum(time_s) for (_, bound), time_s in step.times.parts.items() if "comm" in bound]
    assert sum(linked) == 0.0


def test_parts_of_a_step_add_up_to_it() -> None:
    layouts = Layouts.of([Layout(kvp=4, tpa=2, ep=8, hopb=True)])
    step = phase().step(layouts, np.array(64.0), np.array(1e4), np.array(3.0), detailed=True)
    assert sum(float(np.sum(part)) for part in step.times.parts.values()) == pytest.approx(
        float(step.step_s[0])
    )


def test_tensor_parallelism_beyond_the_kv_heads_reads_no_less_kv() -> None:
    model = ideal("llama-3.1-405b")
    layouts = Layouts.of([Layout(tpa=n, tpf=n) for n in (4, 8, 16, 64)])
    step = model.step(layouts, np.array(4.0), np.array(1e6), np.array(0.0), detailed=True)
    read = step.times.parts["attention", "memory"]
    assert read[0] == pytest.approx(2 * read[1])
    assert read[1] == read[2] == read[3]


def test_kvp_divides_the_reading_of_kv_beyond_the_kv_heads() -> None:
    model = ideal("llama-3.1-405b")
    layouts = Layouts.of([Layout(kvp=n, tpa=8, tpf=8 * n) for n in (1, 2, 8)])
    step = model.step(layouts, np.array(4.0), np.array(1e6), np.array(0.0), detailed=True)
    read = step.times.parts["attention", "memory"]
    assert list(read / read[-1]) == pytest.approx([8.0, 4.0, 1.0])


def test_state_of_mamba_layers_costs_the_same_at_any_context() -> None:
    model = phase()
    parts = [
        model.step(
            Layouts.of([Layout()]), np.array(32.0), np.array(context), np.zeros(()), detailed=True
        ).times.parts["recurrence", "memory"]
        for context in (100.0, 1e6)
    ]
    assert parts[0] == parts[1]


def test_verifying_drafts_reads_recurrent_state_once() -> None:
    model = phase()
    plain, drafted = (
        model.step(
            Layouts.of([Layout()]), np.array(8.0), np.array(1e3), np.array(k), detailed=True
        ).times.parts["recurrence", "memory"]
        for k in (0.0, 5.0)
    )
    assert plain == drafted


def test_small_batches_load_only_the_experts_that_they_meet() -> None:
    model = phase()
    one, many = (
        model.step(
            Layouts.of([Layout()]), np.array(n), np.array(1.0), np.array(0.0), detailed=True
        ).times.parts["experts", "memory"]
        for n in (1.0, 512.0)
    )
    # 22 of 512 experts against all of them.
    latency_s = 40 * model.efficiency.operation_s
    assert (one - latency_s) / (many - latency_s) == pytest.approx(22 / 512, rel=1e-3)


def test_a_pipeline_reads_a_long_prompt_in_less_time_at_the_same_rate() -> None:
    model = ideal("llama-3.1-405b")
    layouts = Layouts.of([Layout(), Layout(pp=4)])
    read = model.read(layouts, np.array(1.0), 131072.0, 0.0, np.array(2048.0))
    # 126 layers over 4 stages: the largest has 32.
    assert read.busy_s[1] / read.busy_s[0] == pytest.approx(32 / 126, rel=0.02)
    assert read.read_s[1] < 0.32 * read.read_s[0]


def test_cached_tokens_are_not_read_again() -> None:
    layouts = Layouts.of([Layout()])
    whole, half = (
        float(phase().read(layouts, np.array(1.0), 8192.0, hit, np.array(8192.0)).read_s[0])
        for hit in (0.0, 4096.0)
    )
    assert 0.45 < half / whole < 0.75


def test_an_all_reduce_takes_one_exchange_when_small_and_two_when_large() -> None:
    hardware = known_hardware("gb200")
    links = Links(hardware, 1.0)
    ranks = np.array([8])
    assert links.all_reduce_s(np.array([0.0]), ranks)[0] == hardware.scale_up_latency_s
    size = 1e9
    twice_s = 2 * size * 7 / 8 / hardware.scale_up_bytes_per_s + 2 * hardware.scale_up_latency_s
    assert links.all_reduce_s(np.array([size]), ranks)[0] == pytest.approx(twice_s)


def test_groups_beyond_a_domain_pay_the_network() -> None:
    links = Links(known_hardware("h100"), 1.0)
    near, far = links.all_to_all_s(np.array([1e8, 1e8]), np.array([8, 16]))
    assert far == pytest.approx(5e-6 + 1e8 * 8 / 16 / 50e9)
    assert near == pytest.approx(2e-6 + 1e8 * 7 / 8 / 450e9)


def test_eight_parts_of_two_and_one_point_two_units_take_seventeen() -> None:
    time_s = overlapped_s(np.array(16.0), 0.0, np.array(9.6), np.array(8.0))
    assert float(time_s) == pytest.approx(17.2)


@pytest.mark.parametrize("name", KNOWN_HARDWARE)
def test_every_figure_of_known_hardware_has_a_source(name: str) -> None:
    spec = known_hardware(name)
    assert set(spec.sources) >= {"flops_per_s", "memory", "scale_up", "scale_out"}
    assert spec.rate("bf16") < spec.rate("fp8") <= spec.rate("fp4")


def test_weights_in_a_format_without_arithmetic_run_in_the_next_wider() -> None:
    h200 = known_hardware("h200")
    assert h200.rate("fp4") == h200.flops_per_s["fp8"]
    alone = replace(h200, flops_per_s={"fp4": 1.0})
    with pytest.raises(PerfError, match="no rate for bf16"):
        alone.rate("bf16")


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(PerfError, match="h100"):
        known_hardware("tpu")
    with pytest.raises(PerfError, match="nvfp4"):
        precision_named("int3")
