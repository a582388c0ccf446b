"""Blocks and slots are never lost, never held twice, and errors change nothing."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from workers.state.blocks import Accounts, BlockPool, NumberPool, OutOfMemory, PoolError
from workers.state.memory import StateMemory

BLOCKS, SLOTS, BLOCK_TOKENS = 12, 5, 4


class MemoryMachine(RuleBasedStateMachine):
    """Any sequence of calls, right and wrong, against a plain model of who holds what."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = StateMemory(blocks=BLOCKS, slots=SLOTS, block_tokens=BLOCK_TOKENS)
        self.held: dict[int, tuple[set[int], int]] = {}
        self.leased: set[int] = set()

    @rule(key=st.integers(0, 8), tokens=st.integers(1, 20), leased=st.booleans())
    def allocate(self, key: int, tokens: int, leased: bool) -> None:
        needed = -(-tokens // BLOCK_TOKENS)
        used = sum(len(blocks) for blocks, _ in self.held.values())
        if key in self.held:
            with pytest.raises(PoolError):
                self.memory.allocate(key, tokens, leased=leased)
        elif used + needed > BLOCKS or len(self.held) == SLOTS:
            with pytest.raises(OutOfMemory):
                self.memory.allocate(key, tokens, leased=leased)
        else:
            blocks, slot = self.memory.allocate(key, tokens, leased=leased)
            assert len(set(blocks)) == len(blocks) == needed
            self.held[key] = (set(blocks), slot)
            self.leased |= {key} if leased else set()

    @rule(key=st.integers(0, 8))
    def settle(self, key: int) -> None:
        if key in self.leased:
            self.memory.settle(key)
            self.leased.discard(key)
        else:
            with pytest.raises(PoolError):
                self.memory.settle(key)

    @rule(key=st.integers(0, 8))
    def free(self, key: int) -> None:
        if key in self.held:
            self.memory.free(key)
            del self.held[key]
            self.leased.discard(key)
        else:
            with pytest.raises(PoolError):
                self.memory.free(key)

    @invariant()
    def nothing_overlaps(self) -> None:
        blocks = [block for held, _ in self.held.values() for block in held]
        slots = [slot for _, slot in self.held.values()]
        assert len(set(blocks)) == len(blocks)
        assert len(set(slots)) == len(slots)
        assert set(blocks) <= set(range(BLOCKS))

    @invariant()
    def the_accounts_balance(self) -> None:
        self.memory.audit()
        of_blocks, of_slots = self.memory.accounts
        leased_blocks = sum(len(self.held[key][0]) for key in self.leased)
        all_blocks = sum(len(blocks) for blocks, _ in self.held.values())
        assert of_blocks == Accounts(
            BLOCKS, BLOCKS - all_blocks, all_blocks - leased_blocks, leased_blocks
        )
        assert of_slots.leased == len(self.leased)
        assert self.memory.free_slots == SLOTS - len(self.held)
        assert self.memory.free_tokens == (BLOCKS - all_blocks) * BLOCK_TOKENS


MemoryMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestMemory = MemoryMachine.TestCase


@given(st.lists(st.integers(1, 6), max_size=8))
def test_freeing_everything_restores_the_pool(counts: list[int]) -> None:
    pool = NumberPool("blocks", 20)
    taken = []
    for count in counts:
        if count <= pool.accounts.free:
            taken.append(pool.take(count))
    for numbers in reversed(taken):
        pool.free(numbers)
    pool.audit()
    assert pool.take(20) == tuple(range(20))


def test_a_fresh_pool_hands_out_contiguous_blocks() -> None:
    pool = BlockPool(10, block_tokens=16)
    assert pool.take_for(1) == (0,)
    assert pool.take_for(33) == (1, 2, 3)


def test_a_number_cannot_be_freed_twice_and_nothing_is_freed_by_the_attempt() -> None:
    pool = NumberPool("blocks", 4)
    first, second = pool.take(1), pool.take(1)
    pool.free(first)
    with pytest.raises(PoolError, match=r"not held, so not freed: \[0\]"):
        pool.free((*second, *first))
    assert pool.accounts == Accounts(capacity=4, free=3, allocated=1, leased=0)


def test_a_number_given_twice_in_one_call_is_refused() -> None:
    pool = NumberPool("blocks", 4)
    (number,) = pool.take(1)
    with pytest.raises(PoolError, match="given twice"):
        pool.free((number, number))


def test_too_much_takes_nothing_and_says_what_is_free() -> None:
    memory = StateMemory(blocks=4, slots=1, block_tokens=4)
    with pytest.raises(OutOfMemory, match="KV blocks: 5 needed, 4 of 4 free"):
        memory.allocate(1, 17)
    memory.allocate(1, 4)
    with pytest.raises(OutOfMemory, match="state slots: 1 needed, 0 of 1 free"):
        memory.allocate(2, 4)
    assert memory.free_tokens == 12
    memory.audit()


def test_an_audit_finds_a_block_that_was_lost() -> None:
    pool = NumberPool("blocks", 3)
    pool.take(1)
    pool._allocated.clear()
    with pytest.raises(PoolError, match="exactly once"):
        pool.audit()
