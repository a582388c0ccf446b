"""The index finds what workers have cached, in a bounded space, and nothing that they have not."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from router.core.events import CacheChanged
from router.core.prefix_index import PrefixIndex
from router.core.prefixes import PrefixKeys
from workers.state.memory import StateMemory

BLOCK = 4


def _stored(
    worker: str, token_ids: list[int], states: list[int], blocks: int | None = None
) -> CacheChanged:
    """What a worker says that has all blocks of a prompt, or so many, and states after tokens."""
    keys = PrefixKeys.of(token_ids, BLOCK)
    named = [
        (
            keys.names[tokens // BLOCK]
            if tokens % BLOCK == 0
            else keys.tail_name(tokens // BLOCK, tokens % BLOCK),
            keys.names[tokens // BLOCK],
            tokens,
        )
        for tokens in states
    ]
    stored = keys.names[1:] if blocks is None else keys.names[1 : blocks + 1]
    return CacheChanged(worker, BLOCK, False, stored, (), named)


def _tokens(index: PrefixIndex, token_ids: list[int], *workers: str) -> list[int]:
    hits = index.match(PrefixKeys.of(token_ids, BLOCK))
    return [hits.tokens(worker) for worker in workers]


def test_a_hit_needs_blocks_and_a_state() -> None:
    index, prompt = PrefixIndex(100), list(range(20))
    index.apply(_stored("blocks", prompt, []))
    index.apply(_stored("state", prompt, [8], blocks=0))
    index.apply(_stored("both", prompt, [8, 16]))
    index.apply(_stored("short", prompt, [8, 16], blocks=2))
    assert _tokens(index, prompt, "blocks", "state", "both", "short") == [0, 0, 16, 8]
    assert index.match(PrefixKeys.of(prompt, BLOCK)).most(1) == ["both"]


def test_a_state_in_the_middle_of_a_block_is_found_by_its_tokens_alone() -> None:
    index, prompt = PrefixIndex(100), list(range(20))
    index.apply(_stored("w", prompt, [10]))
    assert _tokens(index, prompt, "w") == [10]
    assert _tokens(index, [*range(9), 99, *range(10)], "w") == [0]
    assert _tokens(index, list(range(10)), "w") == [0], "one token is always read"
    assert _tokens(index, list(range(11)), "w") == [10]


def test_what_a_worker_lets_go_of_is_no_hit() -> None:
    index, prompt = PrefixIndex(100), list(range(20))
    for worker in ("a", "b"):
        index.apply(_stored(worker, prompt, [8, 16]))
    keys = PrefixKeys.of(prompt, BLOCK)
    index.apply(CacheChanged("a", BLOCK, removed_states=[keys.names[4]]))
    assert _tokens(index, prompt, "a", "b") == [8, 16]
    index.apply(CacheChanged("b", BLOCK, removed_blocks=list(keys.names[3:])))
    assert _tokens(index, prompt, "a", "b") == [8, 8]
    index.forget("a")
    assert _tokens(index, prompt, "a", "b") == [0, 8]
    index.apply(CacheChanged("b", BLOCK, reset=True))
    assert _tokens(index, prompt, "b") == [0]


def test_workers_with_blocks_of_another_size_are_left_out() -> None:
    index = PrefixIndex(100)
    index.apply(_stored("w", list(range(20)), [16]))
    index.apply(CacheChanged("other", 8, False, [1, 2], (), [(2, 2, 16)]))
    assert index.match(PrefixKeys.of(list(range(20)), BLOCK)).most(9) == ["w"]


def test_the_index_never_holds_more_than_its_limit_and_keeps_what_is_used() -> None:
    index, rng = PrefixIndex(200), random.Random(1)
    hot = [rng.randrange(1000) for _ in range(20)]
    index.apply(_stored("w", hot, [16]))
    for _ in range(300):
        index.apply(_stored("w", [rng.randrange(1000) for _ in range(20)], [16]))
        assert _tokens(index, hot, "w") == [16], "used again and again"
        assert index.blocks <= 200
        assert len(index) <= 250
    cold = [rng.randrange(1000) for _ in range(20)]
    index.apply(_stored("w", cold, [16]))
    for _ in range(300):
        index.apply(_stored("w", [rng.randrange(1000) for _ in range(20)], [16]))
    assert _tokens(index, cold, "w") == [0], "not used any more"


def test_workers_that_come_and_go_for_ever_take_no_room() -> None:
    index, prompt = PrefixIndex(100), list(range(20))
    index.apply(_stored("stays", prompt, [16]))
    for number in range(2000):
        index.apply(_stored(f"w{number}", prompt, [16]))
        index.forget(f"w{number}")
    index.apply(_stored("late", prompt, [16]))
    assert _tokens(index, prompt, "stays", "late", "w1999") == [16, 16, 0]
    names = PrefixKeys.of(prompt, BLOCK).names
    assert index._blocks.get(names[1]).bit_length() < 400


def test_a_prefix_that_all_share_is_found_on_different_workers_for_different_prompts() -> None:
    index = PrefixIndex(10_000)
    shared = list(range(16))
    for number in range(50):
        index.apply(_stored(f"w{number}", shared, [16]))
    rng, found = random.Random(0), set()
    for _ in range(50):
        prompt = shared + [rng.randrange(1000) for _ in range(8)]
        found |= set(index.match(PrefixKeys.of(prompt, BLOCK)).most(2))
    assert len(found) > 20


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_router_and_worker_agree_on_what_is_cached(data: st.DataObject) -> None:
    """The cache of a real engine, its news, and the index: the hit that the worker will have."""
    memory = StateMemory(
        blocks=40, block_tokens=BLOCK, max_requests=2, max_checkpoints=5, drafts=False
    )
    index = PrefixIndex(1000)
    prompts = st.lists(st.integers(0, 1), min_size=1, max_size=18)
    for key in range(data.draw(st.integers(1, 12))):
        prompt = data.draw(prompts)
        expected = index.match(PrefixKeys.of(prompt, BLOCK)).tokens("w")
        _, hit = memory.allocate_prompt(key, prompt, len(prompt))
        assert expected == (0 if hit is None else hit.tokens)
        for tokens in sorted({*range(8, len(prompt), 8), len(prompt)}):
            memory.checkpoint(key, prompt[:tokens])
        memory.free(key)
        changes = memory.take_cache_changes()
        states = [(state.name, state.chain, state.tokens) for state in changes.stored_states]
        index.apply(
            CacheChanged(
                "w",
                BLOCK,
                False,
                changes.stored_blocks,
                changes.removed_blocks,
                states,
                changes.removed_states,
            )
        )
