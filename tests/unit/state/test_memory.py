"""Requests and cached prefixes share one memory: nothing overlaps, accounts always balance."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from workers.state.blocks import PoolError
from workers.state.memory import Hit, Holding, OutOfMemory, StateMemory

BLOCKS, REQUESTS, CHECKPOINTS, BLOCK_TOKENS = 14, 4, 3, 4

# Few tokens and few lengths, so that prefixes are often shared.
_PROMPTS = st.lists(st.integers(0, 1), min_size=1, max_size=24)


class MemoryMachine(RuleBasedStateMachine):
    """Any sequence of calls; memory contents are modelled by the tokens that they stand for."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = StateMemory(
            blocks=BLOCKS,
            block_tokens=BLOCK_TOKENS,
            max_requests=REQUESTS,
            max_checkpoints=CHECKPOINTS,
        )
        self.prompts: dict[int, list[int]] = {}
        self.leased: set[int] = set()
        self.quarantined: dict[int, Holding] = {}
        self.in_block: dict[int, list[int]] = {}
        self.in_slot: dict[int, list[int]] = {}

    def _write(self, key: int, prompt: list[int], begin: int) -> None:
        holding = self.memory.holding(key)
        for index in range(begin // BLOCK_TOKENS, len(holding.blocks)):
            part = prompt[index * BLOCK_TOKENS : (index + 1) * BLOCK_TOKENS]
            self.in_block[holding.blocks[index]] = part
        self.in_slot[holding.slot] = prompt

    @rule(key=st.integers(0, 6), prompt=_PROMPTS)
    def read_a_prompt(self, key: int, prompt: list[int]) -> None:
        if key in self.prompts:
            return
        try:
            holding, hit = self.memory.allocate_prompt(key, prompt, 99)
        except OutOfMemory:
            self.memory.audit()
            return
        begin = 0
        if hit is not None:
            begin = self._copy_hit(hit)
            assert begin < len(prompt)
            assert self.in_slot[holding.slot] == prompt[:begin]
            stored = [token for block in holding.blocks for token in self.in_block.get(block, [])]
            assert stored[:begin] == prompt[:begin]
        self.prompts[key] = prompt
        self._write(key, prompt, begin)

    def _copy_hit(self, hit: Hit) -> int:
        self.in_slot[hit.copies.target_slot] = self.in_slot[hit.copies.source_slot]
        if hit.copies.source_block is not None and hit.copies.target_block is not None:
            self.in_block[hit.copies.target_block] = self.in_block[hit.copies.source_block]
        return hit.tokens

    @rule(key=st.integers(0, 6))
    def cache(self, key: int) -> None:
        if key not in self.prompts or key in self.leased:
            return
        copies = self.memory.checkpoint(key, self.prompts[key])
        if copies is not None:
            self.in_slot[copies.target_slot] = self.in_slot[copies.source_slot]
            if copies.source_block is not None and copies.target_block is not None:
                self.in_block[copies.target_block] = self.in_block[copies.source_block]

    @rule(key=st.integers(0, 6), prompt=_PROMPTS)
    def reserve(self, key: int, prompt: list[int]) -> None:
        if key in self.prompts:
            with pytest.raises(PoolError):
                self.memory.allocate(key, len(prompt), leased=True)
            return
        try:
            self.memory.allocate(key, len(prompt), leased=True)
        except OutOfMemory:
            return
        self.prompts[key] = prompt
        self.leased.add(key)

    @rule(key=st.integers(0, 6))
    def settle(self, key: int) -> None:
        if key in self.leased:
            self.memory.settle(key)
            self.leased.discard(key)
            self._write(key, self.prompts[key], 0)

    @rule(key=st.integers(0, 6))
    def give_up_a_reservation_that_somebody_may_write_to(self, key: int) -> None:
        if key in self.leased and key not in self.quarantined:
            self.quarantined[key] = self.memory.holding(key)
            self.memory.quarantine(key)
            self.leased.discard(key)
            del self.prompts[key]

    @rule(key=st.integers(0, 6))
    def end_quarantine(self, key: int) -> None:
        if key in self.quarantined:
            self.memory.end_quarantine(key)
            del self.quarantined[key]
        else:
            with pytest.raises(PoolError):
                self.memory.end_quarantine(key)

    @rule(key=st.integers(0, 6), more=st.integers(1, 6))
    def grow(self, key: int, more: int) -> None:
        if key not in self.prompts or key in self.leased:
            return
        before = self.memory.holding(key)
        tokens = len(before.blocks) * BLOCK_TOKENS + more
        try:
            after = self.memory.grow(key, tokens)
        except OutOfMemory:
            assert self.memory.holding(key) == before
        else:
            assert after.blocks[: len(before.blocks)] == before.blocks
            assert len(after.blocks) * BLOCK_TOKENS >= tokens
            for block in after.blocks[len(before.blocks) :]:
                self.in_block[block] = []

    @rule(key=st.integers(0, 6))
    def free(self, key: int) -> None:
        if key in self.prompts:
            self.memory.free(key)
            del self.prompts[key]
            self.leased.discard(key)
        else:
            with pytest.raises(PoolError):
                self.memory.free(key)

    @invariant()
    def the_accounts_balance(self) -> None:
        self.memory.audit()
        apart = len(self.quarantined)
        assert self.memory.free_slots == REQUESTS - len(self.prompts) - apart
        assert self.memory.quarantined == apart

    @invariant()
    def quarantined_memory_is_nobody_elses(self) -> None:
        held = [self.memory.holding(key) for key in self.prompts]
        for holding in self.quarantined.values():
            assert all(not set(other.blocks) & set(holding.blocks) for other in held)
            assert all(other.slot != holding.slot for other in held)

    @invariant()
    def requests_keep_what_they_wrote(self) -> None:
        for key in self.prompts.keys() - self.leased:
            holding = self.memory.holding(key)
            prompt = self.prompts[key]
            stored = [token for block in holding.blocks for token in self.in_block[block]]
            assert stored[: len(prompt)] == prompt
            assert self.in_slot[holding.slot] == prompt


MemoryMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestMemory = MemoryMachine.TestCase


def _memory(blocks: int = 32, requests: int = 4, checkpoints: int = 4) -> StateMemory:
    return StateMemory(
        blocks=blocks,
        block_tokens=BLOCK_TOKENS,
        max_requests=requests,
        max_checkpoints=checkpoints,
    )


def test_the_longest_cached_prefix_is_found_and_one_token_is_left_to_read() -> None:
    memory = _memory()
    prompt = list(range(10))
    memory.allocate_prompt(1, prompt, 99)
    memory.checkpoint(1, prompt[:4])
    memory.checkpoint(1, prompt)
    _, same = memory.allocate_prompt(2, prompt, 99)
    assert same is not None
    assert same.tokens == 4
    _, longer = memory.allocate_prompt(3, [*prompt, 99], 99)
    assert longer is not None
    assert longer.tokens == 10


def test_with_drafts_the_block_of_the_last_cached_token_is_private_even_when_full() -> None:
    memory = StateMemory(
        blocks=32, block_tokens=BLOCK_TOKENS, max_requests=4, max_checkpoints=4, drafts=True
    )
    first, _ = memory.allocate_prompt(1, list(range(8)), 8)
    memory.checkpoint(1, list(range(8)))
    second, hit = memory.allocate_prompt(2, [*range(8), 99], 9)
    assert hit is not None
    assert hit.tokens == 8
    assert second.blocks[0] == first.blocks[0]
    assert second.blocks[1] == hit.copies.target_block != first.blocks[1]


def test_generated_tokens_never_come_from_the_cache() -> None:
    memory = _memory()
    memory.allocate_prompt(1, [1, 2, 3, 4, 5, 6, 7, 8], 8)
    memory.checkpoint(1, [1, 2, 3, 4])
    memory.checkpoint(1, [1, 2, 3, 4, 5, 6, 7, 8])
    _, hit = memory.allocate_prompt(2, [1, 2, 3, 4, 5, 6, 7, 8, 9], prompt_tokens=5)
    assert hit is not None
    assert hit.tokens == 4


def test_full_blocks_of_a_hit_are_shared_and_the_partial_one_is_copied() -> None:
    memory = _memory()
    prompt = list(range(10))
    first, _ = memory.allocate_prompt(1, prompt, 99)
    memory.checkpoint(1, prompt)
    second, hit = memory.allocate_prompt(2, [*prompt, 99], 99)
    assert hit is not None
    assert second.blocks[:2] == first.blocks[:2]
    assert second.blocks[2] == hit.copies.target_block != first.blocks[2]


def test_cached_prefixes_make_room_the_oldest_first() -> None:
    memory = _memory(blocks=4)
    for key, first_token in ((1, 10), (2, 20)):
        prompt = [first_token] * 8
        memory.allocate_prompt(key, prompt, 99)
        memory.checkpoint(key, prompt)
        memory.free(key)
    assert memory.free_tokens == 16
    memory.allocate(3, 8)
    memory.free(3)
    assert memory.allocate_prompt(4, [10] * 9, 99)[1] is None
    memory.free(4)


def test_a_prefix_in_use_is_not_taken_away_from_who_uses_it() -> None:
    memory = _memory(blocks=4)
    prompt = [7] * 8
    holding, _ = memory.allocate_prompt(1, prompt, 99)
    memory.checkpoint(1, prompt)
    with pytest.raises(OutOfMemory):
        memory.allocate(2, 12)
    assert memory.holding(1) == holding
    memory.audit()


def test_without_checkpoints_nothing_is_cached() -> None:
    memory = _memory(checkpoints=0)
    memory.allocate_prompt(1, [1, 2, 3, 4, 5], 99)
    assert memory.checkpoint(1, [1, 2, 3, 4]) is None
    assert memory.allocate_prompt(2, [1, 2, 3, 4, 5], 99)[1] is None


def test_all_slots_in_use_is_said() -> None:
    memory = _memory(requests=1)
    memory.allocate(1, 4)
    with pytest.raises(OutOfMemory, match="state slots: all 1 are in use"):
        memory.allocate(2, 4)


def test_a_prefix_gives_way_to_a_request_that_it_leaves_no_room_for() -> None:
    memory = StateMemory(blocks=4, block_tokens=4, max_requests=2, max_checkpoints=2, drafts=True)
    prompt = list(range(14))
    memory.allocate_prompt(0, prompt, 14)
    memory.checkpoint(0, prompt[:12])
    memory.free(0)
    # The hit would need a copy of the third block, and all four are the request's own.
    holding, hit = memory.allocate_prompt(1, prompt, 14)
    assert (len(holding.blocks), hit) == (4, None)
    memory.audit()
