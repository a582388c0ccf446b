"""Simulated workers that keep the time of a real model on real hardware."""

from __future__ import annotations

import pytest

from workers.config import WorkerConfig
from workers.engine.simulated.modelled import ModelledTimes
from workers.engine.simulated.times import LinearTimes, NamedTimes
from workers.parallel.layout import ParallelLayout
from workers.perf.errors import PerfError

_NAMED = NamedTimes("nemotron-3-super", "gb200", "nvfp4")
_ONE = ParallelLayout.tensor_parallel(1)


def test_a_step_reads_and_decodes_in_the_time_of_the_planner_s_model() -> None:
    times = ModelledTimes(_NAMED, _ONE, 2048)
    alone, many = times.step_s(0, 1, 1000), times.step_s(0, 64, 64_000)
    assert 1e-4 < alone < many < 0.1
    short, long = times.step_s(512, 0, 0, 256.0), times.step_s(2048, 0, 0, 1024.0)
    assert short < long
    assert times.step_s(512, 64, 64_000, 256.0) > many
    four = ModelledTimes(_NAMED, ParallelLayout(kvp=2, tpa=2, tpf=1, ep=4), 2048)
    assert four.step_s(0, 64, 6_400_000) < times.step_s(0, 64, 6_400_000)


def test_a_hand_off_moves_kv_by_the_token_and_mamba_state_once() -> None:
    times = ModelledTimes(_NAMED, _ONE, 2048)
    fixed, one = times.state_bytes(0), times.state_bytes(1)
    assert fixed > 1_000_000
    assert times.state_bytes(1001) - one == pytest.approx(1000 * (one - fixed), rel=0.01)
    # What is left to send after the last chunk was read does not grow with the prompt.
    assert times.transfer_s(64 * 2048) == pytest.approx(times.transfer_s(8 * 2048), rel=0.5)
    assert times.transfer_s(100) > 0.0


@pytest.mark.parametrize("times", [LinearTimes(step_ms=3.0), _NAMED])
def test_a_config_names_the_times_that_its_worker_keeps(times: LinearTimes | NamedTimes) -> None:
    config = WorkerConfig("w", "decode", "path", "m", engine="simulated", simulated=times)
    assert WorkerConfig.from_json(config.to_json()) == config


def test_unknown_hardware_is_named() -> None:
    with pytest.raises(PerfError, match="abacus"):
        ModelledTimes(NamedTimes("nemotron-3-super", "abacus"), _ONE, 512)
