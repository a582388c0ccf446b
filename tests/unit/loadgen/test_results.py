"""Reports from canned events."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.figures import Targets, conditional, mean_length
from loadgen.recording import INTERRUPTED, Gaps, Record, Recorder, Speculation
from loadgen.results import Run


@dataclass
class Clock:
    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


def answer(
    recorder: Recorder,
    clock: Clock,
    *,
    intended_s: float = 0.0,
    sent_s: float | None = None,
    first_s: float = 0.1,
    gap_s: float = 0.01,
    tokens: int = 3,
    reason: str = "",
    class_name: str = "",
) -> Record:
    record = recorder.new(0, 0, class_name, intended_s, 100, tokens)
    clock.now_s = intended_s if sent_s is None else sent_s
    record.send()
    for place in range(tokens):
        clock.now_s = intended_s + first_s + place * gap_s
        record.chunk(1)
    record.end(reason, "as it was said" if reason else "")
    recorder.ended(record)
    return record


def make() -> tuple[Clock, Recorder, Run]:
    clock = Clock()
    recorder = Recorder(clock)
    return clock, recorder, Run(recorder, Targets(150.0, 20.0), {}, {}, "text", gpus=2)


def test_latency_counts_from_the_intended_moment_and_lateness_is_reported() -> None:
    clock, recorder, run = make()
    answer(recorder, clock, intended_s=1.0, sent_s=1.9, first_s=1.0)
    report = run.document()
    assert report["ttft_ms"]["p50"] == pytest.approx(1000.0)  # type: ignore[index]
    assert report["client"]["late_ms"]["p99"] == pytest.approx(900.0)  # type: ignore[index]
    assert any("the client was late, by 900 ms" in one for one in report["warnings"])  # type: ignore[attr-defined]


def test_goodput_counts_requests_that_met_both_targets_of_all_that_were_judged() -> None:
    clock, recorder, run = make()
    answer(recorder, clock)
    answer(recorder, clock, first_s=0.2)  # TTFT missed
    answer(recorder, clock, gap_s=0.03)  # ITL missed
    answer(recorder, clock, tokens=1)  # has no ITL to miss
    answer(recorder, clock, reason="REASON_WORKER_LOST")
    answer(recorder, clock, reason=INTERRUPTED)
    report = run.document()
    assert (report["requests"], report["finished"], report["unfinished"]) == (6, 4, 1)
    assert report["goodput_share"] == pytest.approx(2 / 5)
    assert report["failed"] == {"REASON_WORKER_LOST": 1}
    seconds = report["seconds"]
    assert isinstance(seconds, float)
    assert report["goodput_rps"] == pytest.approx(2 / seconds)
    assert report["goodput_rps_gpu"] == pytest.approx(1 / seconds)


def test_figures_of_each_gpu_are_left_out_when_their_number_is_not_known() -> None:
    clock, recorder, run = make()
    answer(recorder, clock)
    assert run.document()["tokens_per_s_gpu"] is not None
    run.gpus = None
    assert run.document()["tokens_per_s_gpu"] is None


def test_random_tokens_and_a_slow_client_are_told_about() -> None:
    clock, recorder, run = make()
    answer(recorder, clock)
    assert run.document()["warnings"] == []
    run.prompts, run.loop_delays_ms = "random tokens", [50.0] * 10
    told = run.document()["warnings"]
    assert isinstance(told, list)
    assert "23 %" in told[0]
    assert "event loop was 50 ms late" in told[1]


def test_prompts_that_the_endpoint_counts_in_another_way_are_told_about() -> None:
    clock, recorder, run = make()
    record = answer(recorder, clock)
    record.counted_tokens = record.made_tokens + 30  # a chat template
    assert run.document()["warnings"] == []
    record.counted_tokens = 190
    told = run.document()["warnings"]
    assert isinstance(told, list)
    assert "counted 190 prompt tokens a request where 100 were meant" in told[0]
    assert run.document()["prompt_tokens"] == 190


def test_classes_are_judged_apart() -> None:
    clock, recorder, run = make()
    answer(recorder, clock, class_name="interactive")
    answer(recorder, clock, class_name="batch", first_s=0.9)
    assert run.document()["classes"] == [
        {"name": "interactive", "requests": 1, "good": 1},
        {"name": "batch", "requests": 1, "good": 0},
    ]


def test_a_run_without_a_good_end_still_has_a_report() -> None:
    clock, recorder, run = make()
    answer(recorder, clock, tokens=0, reason="UNAVAILABLE")
    report = run.document()
    assert report["finished"] == 0
    assert report["goodput_share"] == 0.0
    assert report["acceptance"] is None
    # Zeros would look like a very quick server.
    assert (report["ttft_ms"], report["itl_ms"], report["gap_ms"]) == (None, None, None)
    assert report["latencies_over_time"] == []


def test_latencies_over_time_stand_at_the_second_for_which_requests_were_meant() -> None:
    clock, recorder, run = make()
    answer(recorder, clock, intended_s=0.2, first_s=0.1)
    answer(recorder, clock, intended_s=0.9, first_s=0.3)
    answer(recorder, clock, intended_s=7.5, first_s=2.0, tokens=1)
    answer(recorder, clock, intended_s=3.0, reason="REASON_WORKER_LOST")
    rows = run.document()["latencies_over_time"]
    assert isinstance(rows, list)
    early, late = rows
    assert (early["at_s"], late["at_s"]) == (0.5, 7.5)
    assert early["ttft_ms"]["mean"] == pytest.approx(200.0)
    assert late["ttft_ms"]["p99"] == pytest.approx(2000.0)
    assert late["itl_ms"] is None


@given(st.lists(st.floats(1e-5, 100.0), min_size=1, max_size=300))
def test_gaps_are_kept_to_two_percent(values: list[float]) -> None:
    gaps = Gaps()
    for value in values:
        gaps.add(value)
    ordered = sorted(values)
    found = gaps.percentiles_ms((50, 90, 99))
    assert found is not None
    for share in (50, 90, 99):
        place = max(0, math.ceil(len(ordered) * share / 100.0) - 1)
        assert found[f"p{share}"] == pytest.approx(ordered[place] * 1e3, rel=0.011)


_STEPS = st.lists(st.integers(0, 4), min_size=1, max_size=60)


@given(_STEPS)
def test_an_engine_report_and_its_chunks_tell_the_same(accepted: list[int]) -> None:
    """With k = 4 drafts in every step."""
    chunks, report = Speculation(), Speculation()
    for count in accepted:
        chunks.add_chunk(count + 1)
    drafted = [sum(count >= place for count in accepted) for place in range(4)]
    kept = [sum(count > place for count in accepted) for place in range(4)]
    report.add_report(len(accepted), drafted, kept)
    assert report.lengths == chunks.lengths
    assert mean_length(report) == pytest.approx(1.0 + sum(accepted) / len(accepted))
    rates = conditional(chunks)
    assert conditional(report)[: len(rates)] == pytest.approx(rates)


def test_progress_counts_tokens_of_those_that_run_and_of_those_that_ended() -> None:
    clock, recorder, _ = make()
    answer(recorder, clock, tokens=5)
    open_one = recorder.new(1, 0, "", 0.0, 10, 10)
    open_one.send()
    open_one.chunk(2)
    now = recorder.progress()
    assert (now.sent, now.open, now.finished, now.failed, now.tokens) == (2, 1, 1, 0, 7)
