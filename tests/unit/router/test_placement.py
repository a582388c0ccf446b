"""Which pair takes a request: the soonest first token; what is cached counts, load counts more."""

from __future__ import annotations

import random

import pytest

from router.core.breaker import Breaker
from router.core.events import (
    CacheChanged,
    CreditsChanged,
    DrainRequested,
    LoadChanged,
    PrefillDone,
    RequestArrived,
    Reserved,
    StateArrived,
    WorkerLost,
)
from router.core.fleet import Fleet
from router.core.instructions import SendPrefill, SendReserve
from router.core.placement import Ask, Blocked, choose
from router.core.policy import ClassPolicy, Policy
from router.core.prefixes import PrefixKeys
from tests.unit.router.lifecycle_bench import HANDOFF, TICKET, Bench, tokens
from tests.unit.router.virtual_cluster import BLOCK_TOKENS, VirtualCluster, percentile


def _prompt(rng: random.Random, tokens: int) -> list[int]:
    return [rng.randrange(30_000) for _ in range(tokens)]


def _shared_prompts(tell_cache: bool, load: float, seconds: float = 10.0) -> VirtualCluster:
    """Requests with one system prompt of 256 tokens and 256 tokens of their own."""
    rng = random.Random(3)
    rates = {f"p{n}": 10_000.0 for n in range(4)}
    cluster = VirtualCluster(Policy(), rates, tell_cache=tell_cache)
    system, now_s, number = _prompt(rng, 256), 0.0, 0
    while now_s < seconds:
        # Of four workers that read all of it; cached, they can do nearly twice as much.
        now_s += rng.expovariate(load * 4 * 10_000.0 / 512)
        cluster.request(now_s, f"r{number}", system + _prompt(rng, 256))
        number += 1
    cluster.run()
    assert len(cluster.finished) == number
    return cluster


def test_a_shared_system_prompt_does_not_pile_up_on_one_worker() -> None:
    """ai-dynamo#737: all traffic went to the worker that had the system prompt first."""
    cluster = _shared_prompts(tell_cache=True, load=0.9)
    total = sum(cluster.read_by.values())
    assert len(cluster.read_by) == 4
    assert max(cluster.read_by.values()) < 0.4 * total


@pytest.mark.parametrize("load", [0.5, 0.9])
def test_affinity_never_makes_the_first_token_later(load: float) -> None:
    """aicr#1399: TTFT p99 went from 0.7 s to 77 s when routing followed the cache under load."""
    with_cache, without = (_shared_prompts(tell, load) for tell in (True, False))
    for share in (0.5, 0.99):
        followed = percentile(list(with_cache.ttft_s.values()), share)
        ignored = percentile(list(without.ttft_s.values()), share)
        assert followed <= 1.05 * ignored


def test_conversations_go_where_they_were_as_long_as_that_is_soonest() -> None:
    rng = random.Random(5)
    cluster = VirtualCluster(Policy(), {f"p{n}": 10_000.0 for n in range(4)})
    turns = 0
    for talk in range(40):
        text = _prompt(rng, 300)
        for turn in range(5):
            when_s = talk * 0.1 + turn * 2.0
            cluster.request(when_s, f"t{talk}-{turn}", text)
            text = text + _prompt(rng, 60)
            turns += 1
    cluster.run()
    explained = [cluster.core.explain(f"t{talk}-{turn}") for talk in range(40) for turn in range(5)]
    followed = [
        one.decisions[0].chosen.uncached_tokens < 120 for one in explained if one is not None
    ]
    assert sum(followed) > 0.9 * (turns - 40), "later turns find what the earlier ones left"


def test_slow_and_fast_prefill_workers_get_work_as_their_rates_are() -> None:
    rng = random.Random(7)
    cluster = VirtualCluster(Policy(), {"slow": 2_000.0, "fast": 8_000.0})
    now_s = 0.0
    for number in range(400):
        now_s += rng.expovariate(0.8 * 10_000.0 / 400)
        cluster.request(now_s, f"r{number}", _prompt(rng, 400))
    cluster.run()
    assert 2.5 < cluster.read_by["fast"] / cluster.read_by["slow"] < 12.0


def _choose(bench: Bench, read_tokens: int = 10, **ask: object) -> object:
    fields = {"read_tokens": read_tokens, "hold_tokens": read_tokens + 5, **ask}
    return choose(bench.core.fleet, bench.core.book.policy, Ask(**fields))  # type: ignore[arg-type]


def test_what_a_request_waits_for_is_named() -> None:
    bench = Bench("d")
    assert _choose(bench, hold_tokens=200).blocked is Blocked.DECODE  # type: ignore[attr-defined]
    bench.join("p", slots=0)
    assert _choose(bench).blocked is Blocked.PREFILL  # type: ignore[attr-defined]


def test_work_that_waits_at_prefill_workers_keeps_the_rest_in_the_queue() -> None:
    bench = Bench("p", "d", slots=50, prefill_backlog_s=0.015)
    bench.feed(LoadChanged("p", prefill_tokens_per_s=1000.0))
    placed = [bool(bench.request(f"r{number}")) for number in range(4)]
    assert placed == [True, True, False, False], "10 ms of work each, 15 ms may wait"
    assert bench.core.book.blocked is Blocked.PREFILL


def test_short_and_mostly_cached_prompts_are_read_where_they_are_decoded() -> None:
    bench = Bench("p", "d", local_prefill_tokens=16)
    assert isinstance(bench.request("short")[0], SendPrefill)
    bench = Bench("p", "d", local_prefill_share=0.5)
    token_ids = list(range(40))
    keys = PrefixKeys.of(token_ids, BLOCK_TOKENS)
    bench.feed(LoadChanged("d", prefill_tokens_per_s=10_000.0))
    arrived = RequestArrived("cold", 40, 5, prefix=keys)
    assert isinstance(bench.feed(arrived)[0], SendReserve)
    state = (keys.names[2], keys.names[2], 32)
    bench.feed(CacheChanged("d", BLOCK_TOKENS, False, keys.names[1:], (), [state]))
    arrived = RequestArrived("warm", 40, 5, prefix=keys)
    assert isinstance(bench.feed(arrived)[0], SendPrefill)
    story = bench.core.explain("warm")
    assert story is not None
    assert story.decisions[0].chosen.uncached_tokens == 8


@pytest.mark.parametrize("how", ["lost", "draining", "tripped"])
def test_without_a_prefill_worker_to_count_on_decode_reads(how: str) -> None:
    bench = Bench("p", "d")
    match how:
        case "lost":
            bench.feed(WorkerLost("p"))
        case "draining":
            bench.feed(DrainRequested("p"))
        case _:
            view = bench.core.fleet.get("p")
            assert view is not None
            for _ in range(3):
                view.breaker.failed(bench.now_s)
            bench.core.fleet.refresh(view)
    assert bench.request() == [SendPrefill("d", 1, "r", None)]


def test_a_full_link_is_gone_around_and_one_hand_off_is_always_let_by() -> None:
    bench = Bench("p", "d", slots=50, link_backlog_s=0.5)
    slow = LoadChanged("p", state_bytes_per_request=1000, link_bytes_per_s=1000.0)
    bench.feed(slow)
    kinds = [type(bench.request(f"r{number}")[0]) for number in range(3)]
    assert kinds == [SendReserve, SendPrefill, SendPrefill]


def test_a_prompt_that_takes_longer_to_read_than_the_link_to_be_free_waits_for_it() -> None:
    bench = Bench("p", "d", slots=50, link_backlog_s=0.5)
    bench.feed(LoadChanged("p", state_bytes_per_request=1000, link_bytes_per_s=1000.0))
    bench.feed(LoadChanged("d", prefill_tokens_per_s=1.0))  # 10 s for a prompt
    assert bench.request("first") == [SendReserve("d", 1, "first")]
    assert bench.request("second") == []
    assert bench.core.book.blocked is Blocked.LINK
    bench.feed(Reserved("d", 1, TICKET))
    bench.feed(tokens("p", 0, 40))
    bench.feed(PrefillDone("p", 1, 3.0, HANDOFF))
    out = bench.feed(StateArrived("d", 1))
    assert SendReserve("d", 2, "second") in out, "it goes as soon as the link is free"


def test_what_is_ahead_on_the_link_counts_and_not_the_state_itself() -> None:
    bench = Bench("p", "d", slots=50, link_backlog_s=0.5, prefill_backlog_s=99.0)
    bench.feed(LoadChanged("d", prefill_tokens_per_s=1.0))
    bench.feed(LoadChanged("p", state_bytes_per_request=400, link_bytes_per_s=1000.0))
    assert [type(bench.request(f"r{number}")[0]) for number in range(2)] == [SendReserve] * 2
    assert bench.request("r2") == [], "0.8 s are on their way"


def test_a_decode_worker_takes_only_as_many_as_its_itl_target_allows() -> None:
    bench = Bench("d", slots=50, classes=(ClassPolicy("c", 0.5, 0.010),))
    for requests in (1, 2, 3, 4) * 5:
        step_ms = 2.0 + 2.0 * requests
        bench.feed(LoadChanged("d", 0, 0, 1e6, step_ms, requests, 1.0))
    placed = [bool(bench.request(f"r{number}")) for number in range(6)]
    assert placed == [True, True, True, True, False, False], "2 + 2 n <= 10 ms"
    assert bench.core.book.blocked is Blocked.DECODE


def test_a_target_that_no_step_meets_limits_nothing() -> None:
    bench = Bench("d", slots=50, queue_limit=9, classes=(ClassPolicy("c", 0.5, 0.001),))
    for requests in (1, 2, 3, 4) * 5:
        bench.feed(LoadChanged("d", 0, 0, 1e6, 2.0 + 2.0 * requests, requests, 1.0))
    assert all(bench.request(f"r{number}", max_tokens=1) for number in range(6))


def test_work_that_credits_do_not_know_of_yet_is_taken_off_them() -> None:
    bench = Bench("d", slots=3)
    bench.request("a")
    bench.request("b")
    # As of the first piece of work only: the second is on its way.
    bench.feed(CreditsChanged("d", 2, 85, 100, 3, work_seen=1))
    view = bench.core.fleet.get("d")
    assert view is not None
    assert (view.free_slots, view.free_tokens) == (1, 70)
    bench.feed(CreditsChanged("d", 1, 70, 100, 3, work_seen=2))
    assert (view.free_slots, view.free_tokens) == (1, 70)


def test_one_request_may_be_larger_than_a_router_s_part() -> None:
    bench = Bench("d")
    bench.feed(CreditsChanged("d", 2, 50, 100, 4, all_free_tokens=100))
    assert bench.request("large", max_tokens=80) != []
    assert bench.request("second", max_tokens=5) == []


def test_a_breaker_opens_lets_one_by_and_closes_again() -> None:
    breaker = Breaker(Policy(breaker_failures=2, breaker_first_s=1.0, breaker_most_s=3.0))
    breaker.failed(0.0)
    assert not breaker.blocks(0.0)
    for at_s, waits_s in ((0.0, 1.0), (1.0, 2.0), (3.0, 3.0), (6.0, 3.0)):
        breaker.failed(at_s)
        assert breaker.blocks(at_s + waits_s - 0.01)
        assert not breaker.blocks(at_s + waits_s)
        breaker.sent(7)
        assert breaker.blocks(at_s + waits_s), "one at a time"
        assert breaker.state == "probing"
    breaker.succeeded()
    assert breaker.state == "closed"
    assert not breaker.blocks(6.0)


def test_many_equal_workers_are_told_apart_the_same_way_every_time() -> None:
    def placements() -> list[str]:
        bench = Bench(*(f"d{n}" for n in range(40)), queue_limit=100)
        for number in range(60):
            bench.request(f"r{number}")
        return [bench.core.requests[f"r{number}"].decode_worker for number in range(60)]

    first = placements()
    assert first == placements()
    assert max(first.count(name) for name in set(first)) <= 2


def test_an_empty_fleet_can_take_nothing() -> None:
    choice = choose(Fleet(Policy()), Policy(), Ask(1, 2))
    assert choice.chosen is None
    assert choice.blocked is Blocked.DECODE
