"""One step asked for by itself takes what the same step takes among many candidates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.perf.cases import phase
from workers.perf.layouts import Layout, Layouts
from workers.perf.memory import sequence_bytes
from workers.perf.step_times import StepTimes

_CASES = {
    "hybrid with drafts": ("nemotron-3-super", Layout(tpa=2, tpf=2), 3),
    "helix": ("nemotron-3-super", Layout(kvp=4, tpa=2, ep=8, hopb=True), 3),
    "windows": ("gpt-oss-120b", Layout(kvp=2, tpa=4, ep=8), 0),
    "stages and groups": ("deepseek-r1", Layout(pp=2, dp=4, ep=4), 2),
    "dense": ("llama-3.1-8b", Layout(), 0),
}
_TIMES = {
    name: StepTimes(phase(model), layout, draft_tokens=drafts, acceptance_rate=0.6)
    for name, (model, layout, drafts) in _CASES.items()
}


@pytest.mark.parametrize("case", _CASES)
@given(sequences=st.integers(1, 100), context=st.integers(1, 200_000))
def test_a_decode_step_is_that_of_the_planner(case: str, sequences: int, context: int) -> None:
    times = _TIMES[case]
    layout = _CASES[case][1]
    count = sequences * layout.dp * layout.pp
    total = float(count * context)
    alone = times.decode_step_s(count, total)
    among = float(times.steps_s(np.array([float(count)]), np.array([total]))[0])
    assert alone == pytest.approx(among, rel=0.01)


@pytest.mark.parametrize("case", _CASES)
@given(tokens=st.integers(16, 16_384))
def test_reading_a_prompt_takes_what_the_planner_says(case: str, tokens: int) -> None:
    model, layout, drafts = _CASES[case]
    read = phase(model).read(
        Layouts.of([layout]),
        np.ones(1),
        float(tokens),
        0.0,
        np.array(float(tokens)),
        drafts=drafts > 0,
    )
    expected_s = float(read.busy_s[0]) * layout.pp
    assert _TIMES[case].prefill_chunk_s(tokens) == pytest.approx(expected_s, rel=0.06)


@pytest.mark.parametrize("case", _CASES)
@settings(max_examples=20, deadline=None)
@given(
    sequences=st.integers(1, 64),
    context=st.integers(1, 50_000),
    steps=st.integers(1, 3000),
)
def test_a_run_of_steps_takes_their_sum(
    case: str, sequences: int, context: int, steps: int
) -> None:
    times = _TIMES[case]
    total = float(sequences * context)
    growth = sequences * times.acceptance_length
    one_by_one = sum(times.decode_step_s(sequences, total + growth * step) for step in range(steps))
    assert times.decode_run_s(sequences, total, steps) == pytest.approx(one_by_one, rel=0.005)


@pytest.mark.parametrize("case", _CASES)
@given(sequences=st.integers(1, 300), context=st.floats(1.0, 100_000.0))
def test_straight_pieces_are_the_steps_themselves(
    case: str, sequences: int, context: float
) -> None:
    times = _TIMES[case]
    pieces = times.decode_pieces(sequences)
    assert pieces or case == "helix", "only overlapped exchanges bend"
    if pieces:
        total = sequences * context
        piece = next(piece for piece in pieces if total < piece.most_context)
        found = piece.base_s + piece.slope_s * total
        assert found == pytest.approx(times.decode_step_s(sequences, total), rel=1e-12)


def test_a_chunk_in_a_decode_step_costs_less_than_a_step_of_its_own() -> None:
    times = _TIMES["hybrid with drafts"]
    decode_s = times.decode_step_s(32, 32 * 8192.0)
    chunk_s = times.prefill_chunk_s(2048)
    both_s = times.step_s(32, 32 * 8192.0, 2048, 1024)
    assert max(decode_s, chunk_s) < both_s < decode_s + chunk_s


@pytest.mark.parametrize("case", _CASES)
@given(tokens=st.one_of(st.integers(0, 300), st.floats(0.0, 1e6)))
def test_a_hand_off_moves_what_a_sequence_holds(case: str, tokens: float) -> None:
    one = phase(_CASES[case][0])
    held = sequence_bytes(one.model, one.precision, tokens)
    assert _TIMES[case].handoff_bytes(tokens) == pytest.approx(held.total, rel=1e-12)


def test_a_hand_off_takes_longer_for_longer_prompts_and_never_less_than_its_state() -> None:
    times = _TIMES["dense"]
    assert times.handoff_bytes(2000) == 2 * times.handoff_bytes(1000)
    hybrid = _TIMES["hybrid with drafts"]
    assert hybrid.handoff_bytes(1) > 41_943_040 * 4
    assert hybrid.handoff_s(65536, 2048, 0.0) > hybrid.handoff_s(8192, 2048, 0.0)
