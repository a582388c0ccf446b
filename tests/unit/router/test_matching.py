"""How well prefill and decode match is measured, and is what it would be by hand."""

from __future__ import annotations

import random

from router.core.matching import RateMatch
from router.core.placement import Blocked
from router.core.policy import Policy
from router.core.request import State
from tests.unit.router.virtual_cluster import VirtualCluster


def test_shares_and_ratio_are_integrals_over_time() -> None:
    match = RateMatch()
    match.advance(5.0, (9, 9), (9, 9), 9.0, Blocked.LINK)  # what was before nobody knows
    match.advance(7.0, (1.0, 2.0), (3.0, 4.0), 100.0, None)
    match.advance(8.0, (2.0, 2.0), (0.0, 4.0), 0.0, Blocked.DECODE)
    report = match.report()
    assert report.seconds == 3.0
    assert report.prefill_idle_share == 1.0 - (1 * 2 + 2) / (2 * 3)
    assert report.decode_idle_share == 1.0 - (3 * 2) / (4 * 3)
    assert report.matched_ratio == 0.5 / (4 / 6)
    assert report.link_byte_s == 200.0
    assert report.waited_s == {"decode": 1.0, "prefill": 0.0, "link": 0.0}


def test_two_reports_give_what_was_between_them() -> None:
    match = RateMatch()
    match.advance(0.0, (0, 1), (0, 1), 0.0, None)
    match.advance(1.0, (0, 1), (1, 1), 0.0, None)
    early = match.report()
    match.advance(2.0, (1, 1), (1, 1), 0.0, Blocked.PREFILL)
    late = match.report().since(early)
    assert (late.seconds, late.prefill_idle_share, late.matched_ratio) == (1.0, 0.0, 1.0)
    assert late.waited_s["prefill"] == 1.0


def test_nothing_measured_is_no_ratio() -> None:
    assert RateMatch().report().matched_ratio is None


def _run(readers: int, slots: int, seed: int = 1) -> VirtualCluster:
    """Far more requests than can be served: 100 tokens at 1,000/s to read, 0.5 s to decode."""
    rates = {f"p{n}": 1_000.0 for n in range(readers)}
    policy = Policy(queue_limit=10**6, patience=1e9)
    cluster = VirtualCluster(policy, rates, decoders=2, decode_s=0.5, slots=slots)
    rng = random.Random(seed)
    for number in range(300):
        prompt = [rng.randrange(30_000) for _ in range(100)]
        cluster.request(number * 0.001, f"r{number}", prompt)
    cluster.run()
    assert len(cluster.finished) == 300
    return cluster


def test_a_slow_decode_pool_holds_prefill_back_and_is_what_is_waited_for() -> None:
    report = _run(readers=4, slots=4).core.match
    assert report.decode_idle_share < 0.1
    assert report.prefill_idle_share > 0.4
    assert report.matched_ratio is not None
    assert report.matched_ratio < 0.7
    assert report.waited_s["decode"] > 10 * report.waited_s["prefill"]


def test_a_slow_prefill_pool_leaves_decode_idle_and_is_what_is_waited_for() -> None:
    report = _run(readers=1, slots=32).core.match
    assert report.prefill_idle_share < 0.1
    assert report.decode_idle_share > 0.7
    assert report.waited_s["prefill"] > 10 * report.waited_s["decode"]


def test_pools_of_equal_rates_match() -> None:
    # Ten requests each second from one prefill worker; six slots of 0.6 s take ten.
    report = _run(readers=1, slots=3).core.match
    assert report.matched_ratio is not None
    assert report.matched_ratio > 0.8


def test_no_state_piles_up_behind_a_slow_decode_pool() -> None:
    cluster = _run(readers=4, slots=4)
    # A request is read only when a decode slot is set aside for it.
    for number in range(300):
        story = cluster.core.explain(f"r{number}")
        assert story is not None
        assert [step.state for step in story.transitions].count(State.RESERVED) == 1
