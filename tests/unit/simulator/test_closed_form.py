"""Advancing many steps at once gives what advancing them one by one gives."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.simulator.runs import Run, decode_run
from orchestrator.simulator.scenario import Moment
from orchestrator.simulator.simulation import Outcome, Settings, Simulation
from orchestrator.simulator.trace import TraceRequest
from tests.unit.simulator.clusters import TIMES, cluster, traffic
from workers.perf.efficiency import ASSUMED
from workers.perf.engine_times import PhaseModel
from workers.perf.hardware import known_hardware
from workers.perf.known_models import known_model
from workers.perf.layouts import Layout
from workers.perf.precision import precision_named
from workers.perf.speculation import acceptance_rate
from workers.perf.step_times import StepTimes


def roofline(
    name: str, layout: Layout, draft_tokens: int = 0, acceptance: float = 1.0
) -> StepTimes:
    phase = PhaseModel(known_model(name), known_hardware("h200"), precision_named("fp8"), ASSUMED)
    rate = acceptance_rate(acceptance, draft_tokens) if draft_tokens else 0.0
    return StepTimes(phase, layout, draft_tokens=draft_tokens, acceptance_rate=rate)


ROOFLINES = {
    "dense": roofline("llama-3.1-8b", Layout()),
    "window": roofline("gpt-oss-120b", Layout(tpa=2, tpf=2)),
    "helix": roofline("nemotron-3-super", Layout(kvp=4, tpa=2, tpf=2, ep=4, hopb=True)),
}


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(sorted(ROOFLINES)),
    sequences=st.integers(1, 400),
    context=st.integers(1, 4000),
    steps=st.integers(1, 3000),
)
def test_runs_take_as_long_as_their_steps_one_by_one(
    name: str, sequences: int, context: int, steps: int
) -> None:
    times, growth = ROOFLINES[name], float(sequences)
    left, at, total_s = steps, float(sequences * context), 0.0
    while left:
        run = decode_run(times, sequences, at, growth, left)
        assert 1 <= run.steps <= left
        total_s += run.end_s(run.steps)
        left -= run.steps
        at += growth * run.steps
    one_by_one_s = math.fsum(
        times.step_s(sequences, sequences * context + growth * step) for step in range(steps)
    )
    assert total_s == pytest.approx(one_by_one_s, rel=1e-8)


@given(
    first_s=st.floats(1e-4, 0.1),
    slope_s=st.floats(-1e-6, 1e-4),
    steps=st.integers(1, 500),
    share=st.floats(0.0, 1.2),
)
def test_the_step_that_runs_is_the_one_whose_end_comes_next(
    first_s: float, slope_s: float, steps: int, share: float
) -> None:
    if first_s + slope_s * steps <= 0.0:
        return
    run = Run(steps, first_s, slope_s)
    elapsed_s = share * run.end_s(steps)
    ended = sum(run.end_s(step) <= elapsed_s for step in range(1, steps + 1))
    assert run.finished(elapsed_s) == ended
    assert run.running(elapsed_s) == min(ended + 1, steps)


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 1000),
    rate_rps=st.sampled_from((5.0, 20.0, 80.0)),
    times=st.sampled_from(("linear", "dense", "helix")),
    killed_s=st.none() | st.floats(0.1, 4.0),
)
def test_a_whole_cluster_is_the_same_when_every_token_is_told_to_the_core(
    seed: int, rate_rps: float, times: str, killed_s: float | None
) -> None:
    scenario = [] if killed_s is None else [Moment(killed_s, "kill", role="decode", count=1)]

    def run(*, every_token: bool) -> Outcome:
        how = Settings(seed=seed, every_token=every_token, validate=True)
        trace = traffic(60, rate_rps, seed)
        one = cluster(times=TIMES if times == "linear" else ROOFLINES[times])
        return Simulation(one, trace, scenario, how).run()

    closed, stepped = run(every_token=False), run(every_token=True)
    assert list(closed.requests.numbers) == list(stepped.requests.numbers)
    assert closed.requests.failures == stepped.requests.failures
    assert closed.requests.retries == stepped.requests.retries
    for name in ("ttft_ms", "itl_ms", "total_ms", "queue_ms"):
        ours, reference = getattr(closed.requests, name), getattr(stepped.requests, name)
        assert list(ours) == pytest.approx(list(reference), rel=1e-6, abs=1e-6), name
    assert closed.match.decode_busy_s == pytest.approx(stepped.match.decode_busy_s)


def test_speculation_takes_the_steps_that_its_acceptance_length_says() -> None:
    """One request at a time, so that all steps are of one sequence."""
    layout = Layout(tpa=8, ep=8)
    plain = roofline("nemotron-3-super", layout)
    drafting = roofline("nemotron-3-super", layout, draft_tokens=3, acceptance=2.5)
    trace = [TraceRequest(1000.0 * number, 500, 400) for number in range(50)]
    itl_ms = []
    for times, drafts in ((plain, 0), (drafting, 3)):
        quick = cluster(1, 1, times, draft_tokens=drafts, out_bytes_per_s=1e15, in_bytes_per_s=1e15)
        done = Simulation(quick, trace).run().requests
        itl_ms.append(sum(done.itl_ms) / len(done.itl_ms))
    expected = 2.5 * plain.step_s(1, 700.0) / drafting.step_s(1, 700.0)
    assert itl_ms[0] / itl_ms[1] == pytest.approx(expected, rel=0.03)
