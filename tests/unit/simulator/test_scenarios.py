"""Whole clusters: nothing is lost when workers die, drain, flip or have to wait for GPUs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import UsageError
from orchestrator.simulator.cluster import Cluster
from orchestrator.simulator.counts import Change, Observation
from orchestrator.simulator.prefixes import TRACE_BLOCK_TOKENS
from orchestrator.simulator.scenario import Moment, read_scenario
from orchestrator.simulator.simulation import Outcome, Settings, Simulation
from orchestrator.simulator.trace import TraceRequest, read_trace
from protos.tandem.v1 import common_pb2
from router.core.event_log import event_line, header_line, replay
from router.core.events import Drained, Ended, Event, Role
from router.core.policy import ClassPolicy, Policy
from tests.unit.simulator.clusters import cluster, kind, traffic

DATA = Path(__file__).parents[2] / "data"
AUDITED = Settings(validate=True)

moments = st.one_of(
    st.builds(
        Moment,
        st.floats(0.0, 8.0),
        st.just("kill"),
        role=st.sampled_from(("prefill", "decode")),
        count=st.integers(1, 3),
    ),
    st.builds(
        Moment,
        st.floats(0.0, 8.0),
        st.sampled_from(("drain", "resume")),
        worker=st.sampled_from(("prefill-0", "decode-1", "decode-9")),
    ),
    st.builds(
        Moment,
        st.floats(0.0, 8.0),
        st.just("flip"),
        worker=st.sampled_from(("prefill-1", "decode-2")),
        role=st.sampled_from(("prefill", "decode")),
    ),
    st.builds(
        Moment,
        st.floats(0.0, 8.0),
        st.just("scale"),
        counts=st.tuples(
            st.tuples(st.just("prefill"), st.integers(0, 4)),
            st.tuples(st.just("decode"), st.integers(1, 5)),
        ),
    ),
)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 99), scenario=st.lists(moments, max_size=5))
def test_every_request_ends_once_with_all_its_tokens_whatever_happens(
    seed: int, scenario: list[Moment]
) -> None:
    trace = traffic(50, 10.0, seed, longest=800)
    order = sorted(scenario, key=lambda moment: moment.at_s)
    rows = Simulation(cluster(), trace, order, AUDITED).run().requests
    assert len(rows.numbers) + sum(rows.failures.values()) == len(trace)
    assert len(set(rows.numbers)) == len(rows.numbers)
    for number, tokens in zip(rows.numbers, rows.tokens, strict=True):
        assert tokens == trace[number].answer_tokens


def test_the_same_seed_gives_the_same_run() -> None:
    scenario = [Moment(1.0, "kill", role="decode", count=1)]
    runs = [Simulation(cluster(), traffic(80, 15.0), scenario).run() for _ in range(2)]
    assert runs[0].requests == runs[1].requests
    assert runs[0].samples == runs[1].samples
    assert runs[0].match == runs[1].match


def test_what_a_dead_worker_had_goes_on_elsewhere() -> None:
    scenario = [Moment(2.0, "kill", role="decode", count=1)]
    outcome = Simulation(cluster(), traffic(60, 15.0), scenario, AUDITED).run()
    assert outcome.requests.retries > 0
    assert not outcome.requests.failures
    calm = Simulation(cluster(), traffic(60, 15.0)).run()
    assert sum(outcome.requests.total_ms) > sum(calm.requests.total_ms)


def served(outcome: Outcome, role: Role) -> list[tuple[float, int]]:
    """(when, how many) of every change of a pool."""
    changes: list[tuple[float, int]] = []
    for sample in outcome.samples:
        count = sample.prefill_serving if role == "prefill" else sample.decode_serving
        if not changes or changes[-1][1] != count:
            changes.append((sample.at_s, count))
    return changes


def test_a_dead_worker_is_replaced_after_a_cold_start() -> None:
    scenario = [Moment(2.0, "kill", worker="decode-0")]
    changes = served(Simulation(cluster(), traffic(200, 20.0), scenario).run(), "decode")
    assert [count for _, count in changes] == [3, 2, 3]
    assert changes[2][0] - changes[1][0] == pytest.approx(3.0, abs=0.2)


def test_a_worker_without_gpus_is_pending_until_nodes_come() -> None:
    scenario = [
        Moment(1.0, "scale", counts=(("prefill", 2), ("decode", 4))),
        Moment(4.0, "gpus", count=1),
    ]
    outcome = Simulation(cluster(gpus=5), traffic(200, 20.0), scenario).run()
    pending = [sample.at_s for sample in outcome.samples if sample.pending]
    assert min(pending) == pytest.approx(1.0, abs=0.2)
    assert max(pending) == pytest.approx(4.0, abs=0.2)
    assert served(outcome, "decode")[-1][1] == 4
    assert served(outcome, "decode")[-1][0] == pytest.approx(7.0, abs=0.2)


@pytest.mark.parametrize("every_token", [False, True])
def test_a_drained_decode_worker_is_empty_long_before_its_answers_end(every_token: bool) -> None:
    events: list[tuple[float, Event]] = []
    trace = [TraceRequest(0.1 * number, 200, 600) for number in range(6)]
    scenario = [Moment(1.0, "drain", worker="decode-0")]
    settings = replace(AUDITED, every_token=every_token)
    simulation = Simulation(
        cluster(),
        trace,
        scenario,
        settings,
        watch=lambda event, at_s, _: events.append((at_s, event)),
    )
    outcome = simulation.run()
    assert list(outcome.requests.tokens) == [600] * 6
    assert not outcome.requests.retries
    (empty_s,) = [at_s for at_s, event in events if isinstance(event, Drained)]
    moved = [
        event.worker_id
        for _, event in events
        if isinstance(event, Ended) and event.reason == common_pb2.REASON_MIGRATED
    ]
    assert set(moved) == {"decode-0"}
    assert empty_s < 1.2
    assert min(outcome.requests.total_ms) > 2000.0


def test_a_flipped_worker_works_in_its_other_role_and_is_not_replaced() -> None:
    scenario = [Moment(1.0, "flip", worker="decode-2", role="prefill")]
    outcome = Simulation(cluster(), traffic(200, 20.0), scenario, AUDITED).run()
    assert served(outcome, "decode")[-1][1] == 2
    assert served(outcome, "prefill")[-1][1] == 3
    assert not outcome.requests.failures


def test_a_worker_of_another_layout_cannot_take_the_role() -> None:
    one = cluster()
    other = replace(one.kinds["prefill"], layout="TPA8")
    unlike = replace(one, kinds={**one.kinds, "prefill": other})
    scenario = [Moment(1.0, "flip", worker="decode-2", role="prefill")]
    outcome = Simulation(unlike, traffic(100, 20.0), scenario, AUDITED).run()
    assert served(outcome, "decode") == [(0.0, 3)]
    assert not outcome.requests.failures


def test_scaling_down_loses_nothing() -> None:
    scenario = [Moment(1.0, "scale", counts=(("decode", 1),))]
    outcome = Simulation(cluster(), traffic(150, 20.0), scenario, AUDITED).run()
    assert served(outcome, "decode")[-1][1] == 1
    assert outcome.requests.retries == 0
    assert not outcome.requests.failures


def test_without_prefill_workers_prompts_are_read_where_they_are_decoded() -> None:
    outcome = Simulation(cluster(prefill=0), traffic(40, 5.0), settings=AUDITED).run()
    assert not outcome.requests.failures
    assert all(outcome.requests.local)


def test_a_policy_is_asked_every_period_and_obeyed() -> None:
    asked: list[Observation] = []

    def two_more(observed: Observation, wanted: Mapping[Role, int]) -> Change:
        asked.append(observed)
        return Change({"prefill": 2, "decode": 5 if observed.now_s >= 10.0 else wanted["decode"]})

    outcome = Simulation(cluster(), traffic(400, 20.0), counts=two_more).run()
    assert [one.now_s for one in asked[:3]] == [5.0, 10.0, 15.0]
    assert asked[0].serving == {"prefill": 2, "decode": 3}
    assert asked[0].traffic.arrived + asked[1].traffic.arrived == pytest.approx(200, abs=60)
    at_s, count = served(outcome, "decode")[-1]
    assert count == 5
    assert at_s == pytest.approx(13.0, abs=0.2)


def test_gpu_hours_count_cold_starts_and_end_with_the_worker() -> None:
    trace = [TraceRequest(0.0, 10, 2), TraceRequest(100.0, 10, 2)]
    scenario = [Moment(50.0, "kill", worker="decode-0")]
    outcome = Simulation(cluster(), trace, scenario).run()
    assert outcome.gpu_hours * 3600.0 == pytest.approx(5 * outcome.seconds, rel=1e-6)


def cached(trace: list[TraceRequest], block_tokens: int) -> Outcome:
    one = cluster(cached_block_tokens=block_tokens, kv_tokens=1_000_000, step_tokens=8192)
    return Simulation(one, trace, settings=AUDITED).run()


def test_most_of_what_prompts_of_a_trace_share_is_read_once() -> None:
    read = read_trace(DATA / "mooncake_conversation_200.jsonl")
    trace = [replace(one, at_s=one.at_s + 0.3 * n) for n, one in enumerate(read)]
    assert cached(trace, 0).requests.cached_tokens == 0
    names = [name for one in trace for name in one.block_names[1:]]
    shared_tokens = (len(names) - len(set(names))) * TRACE_BLOCK_TOKENS
    rows = cached(trace, TRACE_BLOCK_TOKENS).requests
    assert 0.5 * shared_tokens < rows.cached_tokens <= shared_tokens


def test_a_cached_conversation_is_answered_sooner() -> None:
    trace = [
        TraceRequest(
            8.0 * turn + 0.4 * talk,
            TRACE_BLOCK_TOKENS * (turn + 1) + 100,
            20,
            tuple(1000 * talk + block for block in range(turn + 1)),
        )
        for turn in range(8)
        for talk in range(6)
    ]
    cold, warm = cached(trace, 0).requests, cached(trace, TRACE_BLOCK_TOKENS).requests
    assert warm.cached_tokens > 0.7 * warm.prompt_tokens
    assert sum(warm.ttft_ms) < 0.6 * sum(cold.ttft_ms)
    small = cached(trace, 300_000).requests
    assert small.cached_tokens < 0.5 * warm.cached_tokens, "what does not fit is forgotten"


def test_classes_of_the_trace_are_those_of_the_policy() -> None:
    policy = Policy(classes=(ClassPolicy("fast", 60.0, 1.0, 4.0), ClassPolicy("slow", 60.0, 1.0)))
    one = kind(max_requests=2)
    small = Cluster({"prefill": one, "decode": one}, {"prefill": 1, "decode": 1}, policy)
    names = ("slow", "fast")
    trace = [TraceRequest(0.001 * n, 200, 30, (), names[n % 2]) for n in range(40)]
    rows = Simulation(small, trace).run().requests
    waits: dict[int, list[float]] = {0: [], 1: []}
    for rank, queued in zip(rows.class_ranks, rows.queue_ms, strict=True):
        waits[rank].append(queued)
    assert len(waits[0]) == len(waits[1]) == 20
    assert sum(waits[0]) < sum(waits[1])


def test_what_the_core_did_can_be_replayed_by_a_router() -> None:
    one, lines = cluster(), []
    lines.append(header_line(one.policy, 1))
    scenario = [Moment(1.0, "kill", role="decode", count=1)]
    Simulation(
        one, traffic(40, 15.0), scenario, watch=lambda *seen: lines.append(event_line(*seen))
    ).run()
    replayed = list(replay(lines))
    assert len(replayed) == len(lines) - 1
    assert all(step.same for step in replayed)


def test_a_scenario_is_read_in_order_and_wrong_ones_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "scenario.yaml"
    file.write_text(
        "- {at_s: 9, flip: decode-1, to: prefill}\n"
        "- {at_s: 2, kill: {role: decode, count: 2}}\n"
        "- {at_s: 3, scale: {prefill: 4}}\n"
        "- {at_s: 4, gpus: -8}\n"
        "- {at_s: 5, drain: prefill-0}\n"
    )
    assert read_scenario(file) == [
        Moment(2.0, "kill", role="decode", count=2),
        Moment(3.0, "scale", counts=(("prefill", 4),)),
        Moment(4.0, "gpus", count=-8),
        Moment(5.0, "drain", worker="prefill-0"),
        Moment(9.0, "flip", worker="decode-1", role="prefill"),
    ]
    for text, problem in (
        ("- {kill: a}", "at_s"),
        ("- {at_s: 1, explode: a}", "exactly one of"),
        ("- {at_s: 1, flip: a, to: sideways}", "must be prefill or decode"),
        ("- {at_s: 1, kill: a, why: x}", "unknown: why"),
        ("kill: a", "list of moments"),
    ):
        file.write_text(text)
        with pytest.raises(UsageError, match=problem):
            read_scenario(file)
