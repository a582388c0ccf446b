"""Fits recover the efficiencies that made the measurements, and say how far off they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from orchestrator.calibration.fit import Measurement, fit
from orchestrator.planner.profile import Profile, profile_text, read_profile
from workers.perf.efficiency import KINDS, Efficiency
from workers.perf.engine_times import PhaseModel
from workers.perf.errors import PerfError
from workers.perf.hardware import known_hardware
from workers.perf.known_models import known_model
from workers.perf.layouts import Layout, Layouts
from workers.perf.precision import precision_named

_MODEL = known_model("nemotron-3-super")
_HARDWARE = known_hardware("h200")
_PRECISION = precision_named("fp8")
_TRUE = Efficiency(
    "true",
    dict.fromkeys(KINDS, 0.5),
    dict.fromkeys(KINDS, 0.7),
    step_s=0.002,
    sequence_s=1e-5,
    prompt_s=0.003,
)


def _measured(noise: float) -> list[Measurement]:
    phase = PhaseModel(_MODEL, _HARDWARE, _PRECISION, _TRUE)
    one = Layouts.of([Layout()])
    random = np.random.default_rng(7)
    found: list[Measurement] = []
    for tokens in (64, 256, 1024, 4096, 8192):
        read = phase.read(one, np.ones(1), float(tokens), 0.0, np.array(float(tokens)))
        found.append(Measurement(float(read.busy_s[0]), prompt_tokens=tokens))
    for batch in (1, 4, 16, 64, 256):
        for context in (100.0, 20_000.0):
            step = phase.step(one, np.array(float(batch)), np.array(context), np.array(0.0))
            seconds = float(step.step_s[0])
            found.append(Measurement(seconds, sequences=batch, context_tokens=context))
    return [
        replace(one, seconds=one.seconds * float(random.lognormal(0.0, noise))) for one in found
    ]


def test_exact_measurements_are_predicted_exactly() -> None:
    found = fit(_MODEL, _HARDWARE, _PRECISION, _measured(0.0), "x")
    assert found.efficiency.error is not None
    assert found.efficiency.error < 0.02
    assert found.efficiency.memory["attention"] == pytest.approx(0.7, rel=0.05)
    assert found.efficiency.memory["experts"] == pytest.approx(0.7, rel=0.1)


def test_the_error_grows_with_the_noise_of_measurements() -> None:
    little, much = (
        fit(_MODEL, _HARDWARE, _PRECISION, _measured(noise), "x").efficiency.error
        for noise in (0.01, 0.2)
    )
    assert little is not None
    assert much is not None
    assert little < 0.1 < much


def test_no_efficiency_is_above_the_peak() -> None:
    efficiency = fit(_MODEL, _HARDWARE, _PRECISION, _measured(0.2), "x").efficiency
    for shares in (efficiency.compute, efficiency.memory):
        assert all(0.0 < share <= 1.0 for share in shares.values())


def test_too_few_measurements_are_refused() -> None:
    with pytest.raises(PerfError, match="too few"):
        fit(_MODEL, _HARDWARE, _PRECISION, _measured(0.0)[:3], "x")


def test_a_profile_is_read_as_it_was_written(tmp_path: Path) -> None:
    profile = Profile(_HARDWARE, _TRUE)
    file = tmp_path / "profile.json"
    file.write_text(profile_text(profile, [{"seconds": 0.5}]))
    assert read_profile(file) == profile


@pytest.mark.parametrize(
    ("text", "says"), [("{}", "field 'hardware'"), ("nonsense", "profile"), ('{"x": 1}', "field")]
)
def test_a_file_that_is_no_profile_is_refused(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "profile.json"
    file.write_text(text)
    with pytest.raises(PerfError, match=says):
        read_profile(file)
