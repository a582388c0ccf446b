"""What a worker's prefix cache holds by name, for routers that come later than its news.

The cache belongs to the engine's thread and says only what changes. A router that connects needs
all of it; one that reads too slowly loses its backlog and gets all of it again. Pure.
"""

from __future__ import annotations

from protos.tandem.v1 import worker_pb2
from workers.state.prefix_cache import CacheChanges, CachedState

# A message with more changes than this waiting is replaced by one with everything.
_MOST_PENDING = 65_536


class CacheMirror:
    """The sum of all changes. Owned by the server's event loop."""

    def __init__(self) -> None:
        self.block_tokens = 0  # 0: this worker says nothing of its cache
        self._blocks: set[int] = set()
        self._states: dict[int, CachedState] = {}

    @property
    def states(self) -> set[int]:
        """Names of the states that are cached."""
        return set(self._states)

    def apply(self, changes: CacheChanges) -> None:
        """Take what an engine step said."""
        self._blocks.difference_update(changes.removed_blocks)
        self._blocks.update(changes.stored_blocks)
        for name in changes.removed_states:
            self._states.pop(name, None)
        for state in changes.stored_states:
            self._states[state.name] = state

    def everything(self) -> CacheChanges:
        """All that is cached, as if it had just come."""
        return CacheChanges(
            stored_blocks=sorted(self._blocks), stored_states=list(self._states.values())
        )


class CacheFeed:
    """What one router has not been told yet; everything, at first."""

    def __init__(self, mirror: CacheMirror) -> None:
        self._mirror = mirror
        self._everything = mirror.block_tokens > 0
        # By name, the latest word: whether it is there.
        self._blocks: dict[int, bool] = {}
        self._states: dict[int, CachedState | None] = {}

    def add(self, changes: CacheChanges) -> None:
        """Note changes that the mirror has taken."""
        if self._everything:
            return
        self._blocks.update(dict.fromkeys(changes.removed_blocks, False))
        self._blocks.update(dict.fromkeys(changes.stored_blocks, True))
        self._states.update(dict.fromkeys(changes.removed_states))
        self._states.update((state.name, state) for state in changes.stored_states)
        if len(self._blocks) + len(self._states) > _MOST_PENDING:
            self._everything = True
            self._forget()

    def take(self) -> worker_pb2.CacheChanges | None:
        """The message that brings the router up to date; None when there is nothing to say."""
        block_tokens = self._mirror.block_tokens
        if self._everything:
            self._everything = False
            return _message(self._mirror.everything(), block_tokens, reset=True)
        if not self._blocks and not self._states:
            return None
        changes = CacheChanges(
            stored_blocks=[name for name, there in self._blocks.items() if there],
            removed_blocks=[name for name, there in self._blocks.items() if not there],
            stored_states=[state for state in self._states.values() if state is not None],
            removed_states=[name for name, state in self._states.items() if state is None],
        )
        self._forget()
        return _message(changes, block_tokens, reset=False)

    def _forget(self) -> None:
        self._blocks.clear()
        self._states.clear()


def _message(changes: CacheChanges, block_tokens: int, reset: bool) -> worker_pb2.CacheChanges:
    return worker_pb2.CacheChanges(
        reset=reset,
        block_tokens=block_tokens,
        stored_blocks=changes.stored_blocks,
        removed_blocks=changes.removed_blocks,
        stored_states=[
            worker_pb2.CachedState(name=state.name, chain=state.chain, tokens=state.tokens)
            for state in changes.stored_states
        ],
        removed_states=changes.removed_states,
    )
