"""Routers learn what a worker caches: all of it at first, then what changes, never too much."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from protos.tandem.v1 import worker_pb2
from workers import cache_mirror
from workers.cache_mirror import CacheFeed, CacheMirror
from workers.state.prefix_cache import CacheChanges, CachedState


class _Router:
    """Keeps what the messages say."""

    def __init__(self) -> None:
        self.blocks: set[int] = set()
        self.states: set[int] = set()

    def take(self, message: worker_pb2.CacheChanges | None) -> None:
        if message is None:
            return
        if message.reset:
            self.blocks, self.states = set(), set()
        self.blocks = (self.blocks - set(message.removed_blocks)) | set(message.stored_blocks)
        stored = {state.name for state in message.stored_states}
        self.states = (self.states - set(message.removed_states)) | stored


@given(
    st.lists(
        st.tuples(st.sets(st.integers(0, 9)), st.sets(st.integers(0, 9)), st.booleans()),
        max_size=12,
    ),
    st.integers(1, 30),
)
def test_a_router_knows_what_is_cached_however_slowly_it_reads(
    steps: list[tuple[set[int], set[int], bool]], most_pending: int
) -> None:
    limit, cache_mirror._MOST_PENDING = cache_mirror._MOST_PENDING, most_pending
    try:
        mirror = CacheMirror()
        mirror.block_tokens = 16
        feed, router = CacheFeed(mirror), _Router()
        blocks: set[int] = set()
        for wanted, states, reads in steps:
            changes = CacheChanges(
                stored_blocks=sorted(wanted - blocks),
                removed_blocks=sorted(blocks - wanted),
                stored_states=[CachedState(name, 0, 1) for name in states - mirror.states],
                removed_states=sorted(mirror.states - states),
            )
            blocks = wanted
            mirror.apply(changes)
            feed.add(changes)
            if reads:
                router.take(feed.take())
                assert (router.blocks, router.states) == (wanted, states)
        late = _Router()
        late.take(CacheFeed(mirror).take())
        assert late.blocks == blocks
    finally:
        cache_mirror._MOST_PENDING = limit


def test_a_worker_without_a_cache_says_nothing() -> None:
    assert CacheFeed(CacheMirror()).take() is None
