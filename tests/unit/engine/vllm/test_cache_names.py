"""vLLM's cache events lead routers to the same prefixes as the native engine's."""

from __future__ import annotations

from router.core.events import CacheChanged
from router.core.prefix_index import PrefixIndex
from router.core.prefixes import PrefixKeys
from workers.engine.vllm.cache_names import CacheNames
from workers.engine.vllm.core import BlocksRemoved, BlocksStored, CacheCleared

_BLOCK = 4
_PROMPT = tuple(range(1, 14))  # three blocks and one token


class _Router:
    """An index, and what it finds of the prompt."""

    def __init__(self, names: CacheNames) -> None:
        self._names = names
        self._index = PrefixIndex(100)

    def finds(self) -> int:
        changes = self._names.take_changes()
        states = [(one.name, one.chain, one.tokens) for one in changes.stored_states]
        self._index.apply(
            CacheChanged(
                "w",
                _BLOCK,
                stored_blocks=changes.stored_blocks,
                removed_blocks=changes.removed_blocks,
                stored_states=states,
                removed_states=changes.removed_states,
            )
        )
        return self._index.match(PrefixKeys.of(_PROMPT, _BLOCK)).tokens("w")


def _stored(*blocks: int, mamba: bool = False) -> BlocksStored:
    """Blocks of the prompt by number, which are their hashes, too."""
    first = blocks[0]
    tokens = _PROMPT[first * _BLOCK : (blocks[-1] + 1) * _BLOCK]
    return BlocksStored(blocks, first - 1 if first else None, tokens, _BLOCK, mamba)


def test_blocks_that_come_and_go_are_found_and_not_found_any_more() -> None:
    names = CacheNames(_BLOCK, hybrid=False)
    router = _Router(names)
    names.take(_stored(0, 1))
    assert router.finds() == 8
    names.take(_stored(2))
    assert router.finds() == 12
    names.take(BlocksRemoved((2,)))
    assert router.finds() == 8
    names.take(CacheCleared())
    assert router.finds() == 0


def test_a_block_that_vllm_holds_twice_is_there_until_both_are_gone() -> None:
    names = CacheNames(_BLOCK, hybrid=False)
    router = _Router(names)
    names.take(_stored(0))
    names.take(_stored(0))
    names.take(BlocksRemoved((0,)))
    assert router.finds() == 4
    names.take(BlocksRemoved((0,)))
    assert router.finds() == 0


def test_blocks_after_one_that_was_never_heard_of_and_of_other_sizes_are_left_out() -> None:
    names = CacheNames(_BLOCK, hybrid=False)
    names.take(_stored(1))
    names.take(BlocksStored((7,), None, _PROMPT[:2], 2))
    names.take(BlocksRemoved((8,)))
    assert not names.take_changes()


def test_a_hybrid_model_resumes_only_where_it_has_a_state_too() -> None:
    names = CacheNames(_BLOCK, hybrid=True)
    router = _Router(names)
    names.take(_stored(0, 1))
    assert router.finds() == 0
    names.take(_stored(1, mamba=True))
    assert router.finds() == 8
