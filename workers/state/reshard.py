"""From one group's layout to another's: which bytes go from which rank to which.

Exists so that a request can move between any two layouts. Pure: two layouts and the blocks and
slots at both ends give copies between offsets in the tensors of each kind. Whole arrays are
computed at once, because a long prompt has tens of thousands of copies.

The copies of one kind come in an order that depends on the layouts alone, whatever the block
numbers: sender and receiver hash their own bytes in that order and compare. `coalesce` makes the
fewest descriptors of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from protos.tandem.v1.handoff_pb2 import StateKind
from workers.state.copies import Copies
from workers.state.geometry import SSM_DTYPE
from workers.state.layout import CONV, DRAFT_HIDDEN, DRAFT_KV, KV, SSM, StateLayout

_Numbers = NDArray[np.int64]
# (how many, bytes from one to the next in the source, in the target), outermost first.
_Dimension = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Places:
    """Where one request is in a group: block numbers in the order of its tokens, and a slot."""

    blocks: Sequence[int]
    slot: int


@dataclass(frozen=True, slots=True)
class Extent:
    """A part of a request's state: KV of tokens [first_token, last_token), conv and SSM of the
    Mamba layers [first_layer, last_layer), and with `hidden` the draft's hidden state."""

    first_token: int = 0
    last_token: int = 0
    first_layer: int = 0
    last_layer: int = 0
    hidden: bool = False

    @classmethod
    def whole(cls, layout: StateLayout, tokens: int) -> Extent:
        """All state of a request that has read `tokens` tokens."""
        return cls(0, tokens, 0, layout.geometry.mamba_layers, True)


# The copies of one pair of ranks: offsets from the beginning of each kind's tensor.
PairCopies = dict[StateKind.ValueType, Copies]


def reshard(
    source: StateLayout, target: StateLayout, extent: Extent, here: Places, there: Places
) -> dict[tuple[int, int], PairCopies]:
    """All copies that bring `extent` from the source group to the target group.

    Args:
        source: where the state is.
        target: where it goes; of the same model, with the same dtype and drafts.
        extent: what goes.
        here: places in the source.
        there: places in the target.

    Returns:
        (source rank, target rank) -> kind -> copies; pairs and kinds without bytes are left out.
        Every byte of the extent is written exactly once on each target rank that holds it.

    Raises:
        ValueError: too few blocks for the tokens at either end.
    """
    pairs = ((s, t) for s in source.ranks for t in target.ranks)
    found = {pair: reshard_pair(source, target, *pair, extent, here, there) for pair in pairs}
    return {pair: copies for pair, copies in found.items() if copies}


def reshard_pair(
    source: StateLayout,
    target: StateLayout,
    source_rank: int,
    target_rank: int,
    extent: Extent,
    here: Places,
    there: Places,
) -> PairCopies:
    """As `reshard`, for one pair of ranks."""
    pair = _Pair(source, target, source_rank, target_rank)
    copies: PairCopies = {}
    if extent.last_token > extent.first_token:
        for kind, layers in (
            (KV, source.geometry.attn_layers),
            (DRAFT_KV, source.geometry.draft_attn_layers),
        ):
            copies[kind] = pair.tokens(layers, extent, here, there)
    if extent.last_layer > extent.first_layer:
        copies[CONV] = pair.conv(extent, here.slot, there.slot)
        copies[SSM] = pair.ssm(extent, here.slot, there.slot)
    if extent.hidden:
        copies[DRAFT_HIDDEN] = pair.hidden(here.slot, there.slot)
    return {kind: found for kind, found in copies.items() if len(found)}


def meeting_pairs(source: StateLayout, target: StateLayout, tokens: int) -> set[tuple[int, int]]:
    """The pairs of ranks between which a request of `tokens` tokens moves bytes."""
    places = [Places(range(layout.blocks_for(tokens)), 0) for layout in (source, target)]
    return set(reshard(source, target, Extent.whole(source, tokens), *places))


@dataclass(frozen=True, slots=True)
class _Pair:
    """One source rank and one target rank."""

    source: StateLayout
    target: StateLayout
    s: int
    t: int

    def tokens(self, layers: int, extent: Extent, here: Places, there: Places) -> Copies:
        """KV of `layers` layers: the tokens that both ranks hold, of the heads that are due."""
        mine, theirs = self.source.rank_geometry, self.target.rank_geometry
        heads = self._heads_due()
        if not heads or not layers:
            return _none()
        runs = _token_runs(
            self.source.parallel.kvp,
            self.source.parallel.interleave,
            mine.block_tokens,
            self.source.parallel.kvp_rank(self.s),
            self.target.parallel.kvp,
            self.target.parallel.interleave,
            theirs.block_tokens,
            self.target.parallel.kvp_rank(self.t),
            extent.first_token,
            extent.last_token,
        )
        token_bytes = mine.head_dim * mine.dtype.itemsize
        ends, dimensions = [], []
        sides = (
            (mine, self.source.kv_heads(self.s), here, 0),
            (theirs, self.target.kv_heads(self.t), there, 1),
        )
        for geometry, held, places, column in sides:
            plane_bytes = geometry.block_tokens * token_bytes  # keys or values of one layer
            head_bytes = 2 * layers * plane_bytes
            block, inside = np.divmod(runs[:, column], geometry.block_tokens)
            if len(block) and block.max() >= len(places.blocks):
                raise ValueError(
                    f"blocks: {extent.last_token} tokens reach block {block.max()} of a rank, "
                    f"found {len(places.blocks)} blocks"
                )
            numbers = np.asarray(places.blocks, dtype=np.int64)
            begin = numbers[block] * (len(held) * head_bytes) + inside * token_bytes
            ends.append(begin + held.index(heads[0]) * head_bytes)
            dimensions.append((head_bytes, plane_bytes))
        counts = (len(heads), 2 * layers)
        inner = [*zip(counts, *dimensions, strict=True)]
        lengths = runs[:, 2] * token_bytes
        # Whole blocks of both ends first: they are long runs, and the only ones that can be joined
        # over heads and layers.
        whole = (runs[:, 2] == mine.block_tokens) & (runs[:, 2] == theirs.block_tokens)
        parts = [
            _spread(ends[0][chosen], ends[1][chosen], lengths[chosen], inner)
            for chosen in (whole, ~whole)
        ]
        return np.concatenate(parts)

    def ssm(self, extent: Extent, here: int, there: int) -> Copies:
        mine, theirs = self.source.rank_geometry, self.target.rank_geometry
        held, wanted = self.source.ssm_heads(self.s), self.target.ssm_heads(self.t)
        heads = _overlap(held, wanted)
        if not heads:
            return _none()
        head_bytes = mine.ssm_head_dim * mine.ssm_state_size * SSM_DTYPE.itemsize
        layer_bytes = (len(held) * head_bytes, len(wanted) * head_bytes)
        return _spread(
            _one(here * mine.ssm_slot_bytes + extent.first_layer * layer_bytes[0])
            + held.index(heads[0]) * head_bytes,
            _one(there * theirs.ssm_slot_bytes + extent.first_layer * layer_bytes[1])
            + wanted.index(heads[0]) * head_bytes,
            _one(len(heads) * head_bytes),
            [(extent.last_layer - extent.first_layer, *layer_bytes)],
        )

    def conv(self, extent: Extent, here: int, there: int) -> Copies:
        """x of the heads that both hold, and B and C of the groups that are due, layer by layer."""
        mine, theirs = self.source.rank_geometry, self.target.rank_geometry
        channel_bytes = (mine.conv_kernel - 1) * mine.dtype.itemsize
        layer_bytes = (mine.conv_dim * channel_bytes, theirs.conv_dim * channel_bytes)
        rows = np.array([*self._channels()], dtype=np.int64).reshape(-1, 3) * channel_bytes
        layers = np.arange(extent.first_layer, extent.last_layer, dtype=np.int64)[:, None]
        source = here * mine.conv_slot_bytes + layers * layer_bytes[0] + rows[:, 0]
        target = there * theirs.conv_slot_bytes + layers * layer_bytes[1] + rows[:, 1]
        lengths = np.broadcast_to(rows[:, 2], source.shape)
        return _stacked(source.ravel(), target.ravel(), lengths.ravel())

    def hidden(self, here: int, there: int) -> Copies:
        """Every rank of the source has it: each target rank asks another one."""
        size = self.source.rank_geometry.draft_hidden_bytes
        if not size or self.t % self.source.parallel.size != self.s:
            return _none()
        return _stacked(_one(here * size), _one(there * size), _one(size))

    def _heads_due(self) -> range:
        """The KV heads that this target rank gets from this source rank.

        Of several source ranks with the same head, the target ranks that want it take turns; where
        every target rank holds several heads, its heads come from different ranks.
        """
        heads = _overlap(self.source.kv_heads(self.s), self.target.kv_heads(self.t))
        replicas = self.source.head_replicas
        if not heads or replicas == 1:
            return heads
        layout = self.target
        turn = layout.parallel.tpa_rank(self.t) % layout.head_replicas
        turn += layout.parallel.kvp_rank(self.t) * layout.head_replicas
        if layout.head_replicas == 1:
            turn += heads[0]
        mine = self.source.parallel.tpa_rank(self.s) % replicas
        return heads if turn % replicas == mine else range(0)

    def _channels(self) -> Iterator[tuple[int, int, int]]:
        """Channels of the convolution as (first here, first there, how many)."""
        mine, theirs = self.source.rank_geometry, self.target.rank_geometry
        held, wanted = self.source.ssm_heads(self.s), self.target.ssm_heads(self.t)
        heads = _overlap(held, wanted)
        if heads:
            size = mine.ssm_head_dim
            yield (
                held.index(heads[0]) * size,
                wanted.index(heads[0]) * size,
                len(heads) * size,
            )
        held, wanted = self.source.ssm_groups(self.s), self.target.ssm_groups(self.t)
        groups = self._groups_due(held, wanted)
        if groups:
            size = mine.ssm_state_size
            here = mine.ssm_heads * mine.ssm_head_dim + held.index(groups[0]) * size
            there = theirs.ssm_heads * theirs.ssm_head_dim + wanted.index(groups[0]) * size
            for _ in "BC":
                yield here, there, len(groups) * size
                here, there = here + len(held) * size, there + len(wanted) * size

    def _groups_due(self, held: range, wanted: range) -> range:
        """The groups of which this target rank gets B and C from this source rank."""
        groups = _overlap(held, wanted)
        replicas = self.source.group_replicas
        if not groups or replicas == 1:
            return groups
        turn = self.t % self.target.group_replicas
        if self.target.group_replicas == 1:
            turn += groups[0]
        return groups if turn % replicas == self.s % replicas else range(0)


@lru_cache(maxsize=64)
def _token_runs(
    source_kvp: int,
    source_interleave: int,
    source_block: int,
    source_rank: int,
    target_kvp: int,
    target_interleave: int,
    target_block: int,
    target_rank: int,
    first: int,
    last: int,
) -> _Numbers:
    """Longest runs of tokens that two KVP ranks both hold, in one block at either end.

    Rows of (place among the source rank's tokens, place among the target's, how many).
    """
    tokens = np.arange(first, last, dtype=np.int64)
    if source_kvp > 1:
        tokens = tokens[tokens // source_interleave % source_kvp == source_rank]
    if target_kvp > 1:
        tokens = tokens[tokens // target_interleave % target_kvp == target_rank]
    if not len(tokens):
        return np.empty((0, 3), dtype=np.int64)
    here = _local_index(tokens, source_kvp, source_interleave)
    there = _local_index(tokens, target_kvp, target_interleave)
    breaks = (np.diff(here) != 1) | (np.diff(there) != 1)
    breaks |= (here[1:] % source_block == 0) | (there[1:] % target_block == 0)
    firsts = np.concatenate(([0], np.flatnonzero(breaks) + 1))
    lengths = np.diff(firsts, append=len(tokens))
    runs = np.stack((here[firsts], there[firsts], lengths), axis=1)
    runs.flags.writeable = False
    return runs


def _local_index(tokens: _Numbers, kvp: int, interleave: int) -> _Numbers:
    """`ParallelLayout.local_index` of many tokens."""
    if kvp == 1:
        return tokens
    return tokens // (kvp * interleave) * interleave + tokens % interleave


def _spread(
    sources: _Numbers, targets: _Numbers, lengths: _Numbers, dimensions: list[_Dimension]
) -> Copies:
    """Each copy once for every place of the dimensions; dimensions without gaps are joined."""
    if not len(sources):
        return _none()
    dimensions = list(dimensions)
    while dimensions:
        count, here, there = dimensions[-1]
        if count > 1 and not (here == there and (lengths == here).all()):
            break
        lengths = lengths * count
        dimensions.pop()
    for count, here, there in dimensions:
        steps = np.arange(count, dtype=np.int64)
        sources = np.add.outer(sources, steps * here)
        targets = np.add.outer(targets, steps * there)
    repeated = np.repeat(lengths, sources.size // len(lengths))
    return _stacked(sources.ravel(), targets.ravel(), repeated)


def _stacked(sources: _Numbers, targets: _Numbers, lengths: _Numbers) -> Copies:
    return np.stack((sources, targets, lengths), axis=1).astype(np.uint64)


def _one(number: int) -> _Numbers:
    return np.array([number], dtype=np.int64)


def _none() -> Copies:
    return np.empty((0, 3), dtype=np.uint64)


def _overlap(left: range, right: range) -> range:
    return range(max(left.start, right.start), min(left.stop, right.stop))
