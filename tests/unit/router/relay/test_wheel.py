"""Tokens that wait for each other: merged by request, in order, none lost, none too long."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.core.events import TokensArrived
from router.core.tokens import TokenLogprob
from router.relay.wheel import SLOTS, TICK_S, TokenWheel, slots_due


def step(*rows: tuple[int, int, list[int]]) -> TokensArrived:
    """A step of (handle, first index, token ids)."""
    return TokensArrived(
        "w",
        [handle for handle, _, _ in rows],
        [first for _, first, _ in rows],
        [len(ids) for _, _, ids in rows],
        [token_id for _, _, ids in rows for token_id in ids],
    )


def rows(event: TokensArrived | None) -> list[tuple[int, int, list[int]]]:
    if event is None:
        return []
    ids = iter(event.token_ids)
    return [
        (handle, first, [next(ids) for _ in range(count)])
        for handle, first, count in zip(
            event.handles, event.first_indexes, event.counts, strict=True
        )
    ]


def test_tokens_of_several_steps_come_out_as_one_row() -> None:
    wheel = TokenWheel("w")
    assert wheel.put(step((1, 4, [10]), (2, 8, [20])), 0.0) is None
    assert wheel.put(step((1, 5, [11, 12]), (2, 9, [21])), 0.005) is None
    assert rows(wheel.turn(SLOTS, 0.01)) == [(1, 4, [10, 11, 12]), (2, 8, [20, 21])]
    assert wheel.empty
    assert wheel.waits_s == [0.01, 0.01]


def test_first_tokens_do_not_wait() -> None:
    wheel = TokenWheel("w")
    assert rows(wheel.put(step((1, 0, [10]), (2, 8, [20])), 0.0)) == [(1, 0, [10])]
    assert not wheel.empty


def test_the_end_of_a_request_takes_its_tokens_along_and_no_others() -> None:
    wheel = TokenWheel("w")
    wheel.put(step((1, 4, [10]), (2, 8, [20])), 0.0)
    assert rows(wheel.take((1, 99), 0.001)) == [(1, 4, [10])]
    assert wheel.take((1,), 0.001) is None
    assert rows(wheel.turn(SLOTS, 0.002)) == [(2, 8, [20])]


def test_what_does_not_continue_is_passed_on_for_the_core_to_judge() -> None:
    wheel = TokenWheel("w")
    wheel.put(step((1, 4, [10])), 0.0)
    assert rows(wheel.put(step((1, 9, [11])), 0.001)) == [(1, 4, [10]), (1, 9, [11])]
    assert wheel.empty


def test_log_probabilities_stay_with_their_tokens() -> None:
    wheel = TokenWheel("w")
    told = TokenLogprob(-1.0, ((10, -1.0),))
    wheel.put(TokensArrived("w", [1, 2], [3, 0], [1, 1], [10, 20], [told, TokenLogprob(-2.0)]), 0.0)
    wheel.put(step((11, 5, [30])), 0.0)
    event = wheel.turn(SLOTS, 0.01)
    assert event is not None
    assert dict(zip(event.token_ids, event.logprobs, strict=True)) == {
        10: told,
        30: TokenLogprob(0.0),
    }


@given(st.floats(0, 0.025), st.lists(st.floats(TICK_S, 0.05), min_size=1, max_size=30))
def test_a_turn_takes_no_longer_than_the_hold_and_one_tick(
    hold_s: float, ticks_s: list[float]
) -> None:
    waited_s, slots = 0.0, 0
    for tick_s in ticks_s * SLOTS:
        waited_s += tick_s
        slots += slots_due(tick_s, hold_s)
        if slots >= SLOTS:
            break
    assert slots >= SLOTS
    assert waited_s <= hold_s + tick_s + 1e-9


@given(
    st.lists(st.tuples(st.integers(1, 25), st.integers(1, 3), st.integers(0, 3)), max_size=120),
    st.integers(1, SLOTS),
)
def test_nothing_is_lost_doubled_or_out_of_order(
    sent: list[tuple[int, int, int]], slots: int
) -> None:
    wheel, due, seen = TokenWheel("w"), dict.fromkeys(range(1, 26), 0), dict[int, list[int]]()
    oldest: dict[int, int] = {}

    def got(event: TokensArrived | None, tick: int) -> None:
        for handle, first, ids in rows(event):
            assert first == len(seen.setdefault(handle, []))
            seen[handle] += ids
            assert tick - oldest.pop(handle, tick) <= -(-SLOTS // slots)

    for tick, (handle, count, what) in enumerate(sent):
        ids = list(range(due[handle], due[handle] + count))
        if due[handle]:
            oldest.setdefault(handle, tick)
        straight = wheel.put(step((handle, due[handle], ids)), float(tick))
        due[handle] += count
        got(straight, tick)
        if what == 0:
            got(wheel.take((handle,), float(tick)), tick)
        got(wheel.turn(slots, float(tick)), tick)
    got(wheel.turn(SLOTS, float(len(sent))), len(sent))
    assert wheel.empty
    for handle, ids in seen.items():
        assert ids == list(range(due[handle]))
