"""Blocks and slots are never lost, never held twice, and errors change nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.state.blocks import Accounts, NumberPool, OutOfMemory, PoolError


@given(st.lists(st.integers(1, 6), max_size=8))
def test_releasing_everything_restores_the_pool(counts: list[int]) -> None:
    pool = NumberPool("blocks", 20)
    taken = [pool.take(count) for count in counts if count <= pool.free]
    for numbers in reversed(taken):
        pool.release(numbers)
    pool.audit()
    assert pool.take(20) == tuple(range(20))


def test_a_fresh_pool_hands_out_contiguous_numbers() -> None:
    pool = NumberPool("blocks", 10)
    assert pool.take(1) == (0,)
    assert pool.take(3) == (1, 2, 3)


def test_a_number_cannot_be_released_twice_and_nothing_is_freed_by_the_attempt() -> None:
    pool = NumberPool("blocks", 4)
    first, second = pool.take(1), pool.take(1)
    pool.release(first)
    with pytest.raises(PoolError, match=r"not held, so not released: \[0\]"):
        pool.release((*second, *first))
    assert pool.accounts == Accounts(capacity=4, free=3, allocated=1, leased=0, cached=0)


def test_a_number_given_twice_in_one_call_is_refused() -> None:
    pool = NumberPool("blocks", 4)
    (number,) = pool.take(1)
    with pytest.raises(PoolError, match="given twice"):
        pool.release((number, number))


def test_too_much_takes_nothing_and_says_what_is_free() -> None:
    pool = NumberPool("KV blocks", 4)
    with pytest.raises(OutOfMemory, match="KV blocks: 5 needed, 4 of 4 free"):
        pool.take(5)
    assert pool.free == 4


def test_a_shared_number_is_free_when_its_last_holder_lets_go() -> None:
    pool = NumberPool("blocks", 2)
    numbers = pool.take(1)
    pool.share(numbers)
    pool.release(numbers)
    assert pool.accounts.allocated == 1
    pool.release(numbers)
    assert pool.free == 2


def test_a_kept_number_is_cached_between_holders_and_free_when_dropped() -> None:
    pool = NumberPool("blocks", 2)
    numbers = pool.take(1)
    pool.keep(numbers)
    pool.release(numbers)
    assert pool.accounts == Accounts(capacity=2, free=1, allocated=0, leased=0, cached=1)
    pool.share(numbers)
    assert pool.accounts.cached == 0
    pool.drop(numbers)
    assert pool.accounts.allocated == 1
    pool.release(numbers)
    assert pool.free == 2
    pool.audit()


def test_leased_numbers_cannot_be_shared_or_kept_before_they_are_settled() -> None:
    pool = NumberPool("blocks", 2)
    numbers = pool.take(1, leased=True)
    with pytest.raises(PoolError, match="not in use, so not shared"):
        pool.share(numbers)
    with pytest.raises(PoolError, match="not in use, so not kept"):
        pool.keep(numbers)
    pool.settle(numbers)
    pool.share(numbers)


def test_an_audit_finds_a_number_that_was_lost() -> None:
    pool = NumberPool("blocks", 3)
    pool.take(1)
    pool._holders.clear()
    with pytest.raises(PoolError, match="exactly once"):
        pool.audit()
