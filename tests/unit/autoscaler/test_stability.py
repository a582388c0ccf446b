"""What keeps the autoscaler from doing harm: it settles, does not flap, lets go of what idles."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.autoscaler.lengths import Lengths
from orchestrator.autoscaler.observation import ROLES, WorkerSeen
from orchestrator.autoscaler.policy import TandemPolicy
from protos.tandem.v1 import common_pb2
from tests.unit.autoscaler.plant import Plant, ground

_SETTLED_S = 240.0


def plant(**fields: object) -> Plant:
    one = ground(**fields)
    return Plant(one, TandemPolicy(one))


@given(arrived=st.integers(0, 60), cold_start_s=st.sampled_from([5.0, 30.0, 180.0]))
@settings(max_examples=10, deadline=None)
def test_constant_load_causes_no_actions_after_settling(arrived: int, cold_start_s: float) -> None:
    one = plant(cold_start_s=cold_start_s)
    one.run(_SETTLED_S + cold_start_s, lambda _: arrived)
    settled = len(one.decisions)
    one.run(300.0, lambda _: arrived)
    assert one.decisions[settled:] == []


@given(seed=st.integers(0, 10_000), rate=st.floats(0.5, 12.0))
@settings(max_examples=5, deadline=None)
def test_random_arrivals_of_a_constant_rate_do_not_make_pools_flap(seed: int, rate: float) -> None:
    rng, one = random.Random(seed), plant()

    def poisson(_: float) -> int:
        return sum(1 for _ in itertools.takewhile(lambda at: at < 5.0, _arrivals(rng, rate)))

    one.run(_SETTLED_S, poisson)
    settled = len(one.decisions)
    one.run(900.0, poisson)
    # At an edge between two counts noise may tip it now and then; it may not follow the noise.
    assert len(one.decisions) - settled <= 12
    for before, after in itertools.pairwise(one.decisions[settled:]):
        if sum(after.after.values()) < sum(before.after.values()):
            assert after.at_s - before.at_s >= 15.0


def _arrivals(rng: random.Random, rate: float) -> itertools.accumulate[float]:
    return itertools.accumulate(rng.expovariate(rate) for _ in itertools.count())


@given(arrived=st.integers(1, 60))
@settings(max_examples=4, deadline=None)
def test_without_traffic_pools_shrink_to_their_minimum(arrived: int) -> None:
    one = plant(least={"prefill": 0, "decode": 1})
    one.run(_SETTLED_S, lambda _: arrived)
    one.run(_SETTLED_S, lambda _: 0)
    assert one.expected() == {"prefill": 0, "decode": 1}
    assert one.decisions[-1].reason in (common_pb2.REASON_IDLE, common_pb2.REASON_SURPLUS)


@given(low=st.integers(0, 20), high=st.integers(21, 60))
@settings(max_examples=5, deadline=None)
def test_what_stays_after_a_scale_down_carries_the_load_with_a_margin(low: int, high: int) -> None:
    one = plant()
    one.run(_SETTLED_S, lambda _: high)
    before = len(one.decisions)
    one.run(_SETTLED_S, lambda _: low)
    workload = Lengths(60.0, 1000.0, 100.0).workload(one.one.attainment)
    sizing = one.one.sizing(workload)
    for decision in one.decisions[before:]:
        if decision.reason == common_pb2.REASON_SURPLUS:
            expected_rps = 1.05 * decision.inputs["arrival_rps"]
            missed = sizing.missed(
                decision.after["prefill"], decision.after["decode"], expected_rps
            )
            assert missed <= sizing.may_miss


def test_a_surplus_that_noise_may_have_made_is_kept_longer_than_one_that_a_jump_has_made() -> None:
    def held_s(later: Callable[[int], int]) -> float:
        one = plant()
        one.run(_SETTLED_S, lambda _: 40)
        before, began_s = len(one.decisions), one.now_s
        for period in range(120):
            one.step(later(period))
            if len(one.decisions) > before:
                return one.now_s - began_s
        raise AssertionError("nothing was let go")

    assert held_s(lambda _: 10) <= 40.0
    assert held_s(lambda period: max(40 - period, 10)) > 60.0


def test_workers_are_there_when_a_jump_comes_back() -> None:
    one = plant(cold_start_s=30.0)

    def bursts(now_s: float) -> int:
        return 60 if now_s % 600.0 >= 540.0 else 10

    one.run(2 * 600.0, bursts)
    one.run(540.0, bursts)
    ready = dict(one.counts)
    decision = one.decisions[-1]
    assert decision.reason == common_pb2.REASON_DEMAND_EXPECTED
    assert decision.inputs["recurring_jump_rps"] == pytest.approx(12.0, rel=0.1)
    one.run(60.0, bursts)
    # What one period says of the new level may add one; a plain step starts five.
    assert sum(one.expected().values()) <= sum(ready.values()) + 1


def test_a_decision_tells_longer_requests_from_more_of_them() -> None:
    one = plant(role_flip=False)
    one.run(_SETTLED_S, lambda _: 20)
    before = len(one.decisions)
    one.osl = 400
    one.run(300.0, lambda _: 20)
    assert one.decisions[before].reason == common_pb2.REASON_LENGTHS_CHANGED
    one.run(30.0, lambda _: 80)
    assert one.decisions[-1].reason == common_pb2.REASON_DEMAND_GREW


def test_a_pool_outside_of_its_limits_is_brought_back() -> None:
    one = plant(least={"prefill": 2, "decode": 2})
    one.step(0)
    assert one.decisions[0].reason == common_pb2.REASON_LIMITS
    assert one.expected() == {"prefill": 2, "decode": 2}


def test_after_a_step_counts_settle_within_three_periods() -> None:
    one = plant()
    one.run(_SETTLED_S, lambda _: 5)
    before = len(one.decisions)
    began_s = one.now_s
    one.run(120.0, lambda _: 50)
    grown = one.decisions[before:]
    assert grown[0].at_s - began_s <= one.one.period_s
    assert grown[-1].at_s - began_s <= 3 * one.one.period_s
    assert grown[-1].after["prefill"] >= 4


def test_a_single_burst_of_one_period_is_not_followed_down_and_up_again() -> None:
    one = plant()
    one.run(_SETTLED_S, lambda _: 20)
    settled = len(one.decisions)
    one.step(26)
    one.run(120.0, lambda _: 20)
    assert len(one.decisions) - settled <= 2


def test_workers_that_wait_for_gpus_count_as_coming_and_are_called_off() -> None:
    one = plant()
    one.run(_SETTLED_S, lambda _: 5)
    one.gpus = 0
    one.run(20.0, lambda _: 50)
    asked = len(one.decisions)
    waiting = dict(one.pending)
    assert sum(waiting.values()) > 0
    one.run(60.0, lambda _: 50)
    assert len(one.decisions) - asked <= 1  # what is coming is not asked for again
    one.run(30.0, lambda _: 5)
    assert sum(one.pending.values()) == 0
    assert one.counts["prefill"] >= 1


def test_what_cold_workers_measure_is_ignored() -> None:
    slow = {"prefill_tokens_per_s": 50.0, "step_ms": 500.0, "step_requests": 4}
    one = plant()
    one.workers = tuple(WorkerSeen(role, role, 3.0, **slow) for role in ROLES)  # type: ignore[arg-type]
    one.run(_SETTLED_S, lambda _: 20)
    cold = one.expected()
    other = plant()
    other.run(_SETTLED_S, lambda _: 20)
    assert cold == other.expected()


def test_what_warm_workers_measure_corrects_the_model() -> None:
    one, other = plant(), plant()
    one.workers = (WorkerSeen("prefill-0", "prefill", 60.0, prefill_tokens_per_s=1200.0),)
    for each in (one, other):
        each.run(_SETTLED_S, lambda _: 20)
    # Half as fast as predicted: about twice as many are needed.
    assert one.expected()["prefill"] >= other.expected()["prefill"] * 1.5
    assert one.expected()["decode"] == other.expected()["decode"]


def test_a_worker_of_a_pool_with_some_to_spare_changes_sides() -> None:
    one = plant()
    one.run(_SETTLED_S, lambda _: 20)
    one.isl, one.osl = 100, 1500
    one.run(300.0, lambda _: 20)
    flips = [decision for decision in one.decisions if any(decision.flips.values())]
    assert flips
    assert flips[0].flips["decode"] > 0
    assert "decode" in flips[0].summary()


def test_roles_are_kept_where_the_spec_says_so() -> None:
    one = plant(role_flip=False)
    one.run(_SETTLED_S, lambda _: 20)
    one.isl, one.osl = 100, 1500
    one.run(300.0, lambda _: 20)
    assert not any(any(decision.flips.values()) for decision in one.decisions)
    grown = next(one for one in one.decisions if one.after["decode"] > one.before["decode"])
    assert any("role_flip is off" in other.why_not for other in grown.alternatives)


def test_counts_stay_within_their_limits() -> None:
    one = plant(most={"prefill": 3, "decode": 2})
    one.run(_SETTLED_S, lambda _: 200)
    assert one.expected() == {"prefill": 3, "decode": 2}


def test_a_decision_says_what_it_rests_on() -> None:
    one = plant()
    one.run(60.0, lambda _: 50)
    lines = "\n".join(one.decisions[0].lines())
    for part in ("scale-1", "prefill 1 ->", "arrival_rps", "isl_tokens", "per prefill worker"):
        assert part in lines
    assert one.decisions[0].inputs["isl_tokens"] == pytest.approx(1000.0)
