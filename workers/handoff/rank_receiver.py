"""One rank's part of the hand-offs that come to its group: check what others wrote into its memory.

Exists in each rank, beside the agent that the notifications come to. A part is checked as soon as
it is in, so that only the last one is checked while the request waits. A notification that names
no expected reservation, or that is no manifest, is dropped with a log line and harms nobody.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from itertools import pairwise

from protos.tandem.v1.handoff_pb2 import Manifest, StateKind
from workers.handoff.errors import ManifestMismatch
from workers.handoff.manifest import (
    ModelVersion,
    compare,
    extent_from_proto,
    verify_agreement,
    verify_regions,
)
from workers.handoff.messages import Event, Expect, Expecting, PairArrived, PairRefused
from workers.state.copies import LENGTH, TARGET
from workers.state.layout import StateLayout
from workers.state.reshard import Extent, PairCopies, Places, reshard_pair
from workers.state.store import StateStore

logger = logging.getLogger(__name__)

# A prompt of a million tokens in chunks of 256; nobody may fill our memory with parts.
_MOST_PARTS = 8192


@dataclass(slots=True)
class _Pair:
    """What one source rank has brought so far."""

    extents: dict[int, Extent] = field(default_factory=dict)  # by number of the part
    moved: dict[StateKind.ValueType, int] = field(default_factory=dict)
    last: Manifest | None = None


@dataclass(slots=True)
class _Expected:
    there: Places
    tokens: int
    growth_tokens: int
    pairs: dict[int, _Pair] = field(default_factory=dict)  # by source rank


class RankReceiver:
    """All hand-offs that come to one rank. Owned by whoever drives the rank's agent."""

    def __init__(
        self, store: StateStore, layout: StateLayout, rank: int, model: ModelVersion
    ) -> None:
        self._store = store
        self._layout = layout
        self._rank = rank
        self._model = model
        self._expected: dict[int, _Expected] = {}

    @property
    def busy(self) -> bool:
        """Whether anything may arrive."""
        return bool(self._expected)

    def expect(self, command: Expect) -> list[Event]:
        """Be ready for state in the blocks and the slot, which nobody else may use."""
        self._clear_unused(command)
        self._expected[command.reservation] = _Expected(
            Places(command.blocks, command.slot), command.tokens, command.growth_tokens
        )
        return [Expecting(self._rank, command.reservation)]

    def forget(self, reservation: int) -> None:
        """Drop a reservation; nothing happens if there is none."""
        self._expected.pop(reservation, None)

    def accept(self, manifest: Manifest, sender: str) -> list[Event]:
        """Check one part; the event is about the pair of ranks that it ends, well or not."""
        expected = self._expected.get(manifest.reservation)
        if expected is None:
            logger.warning(
                "dropped a manifest from %s: reservation %d is unknown, used or over",
                sender,
                manifest.reservation,
            )
            return []
        try:
            source = self._check(manifest, expected)
        except ManifestMismatch as error:
            self.forget(manifest.reservation)
            detail = f"manifest from {sender}: {error}"
            return [
                PairRefused(
                    self._rank, manifest.reservation, manifest.transfer, error.reason, detail
                )
            ]
        pair = expected.pairs[source]
        if pair.last is None or len(pair.extents) <= pair.last.number:
            return []
        return [
            PairArrived(
                self._rank,
                manifest.reservation,
                manifest.transfer,
                source,
                manifest.source_layout.SerializeToString(),
                pair.last.tokens,
                pair.last.first_token_id,
                tuple(pair.last.made_token_ids),
            )
        ]

    def _check(self, manifest: Manifest, expected: _Expected) -> int:
        """Verify a part and note it; returns its source rank.

        Raises:
            ManifestMismatch: the first thing that is wrong.
        """
        source = verify_agreement(
            manifest.model_fingerprint,
            manifest.epoch,
            manifest.source_layout,
            self._model,
            self._layout,
        )
        compare("target_rank", self._rank, manifest.target_rank)
        if manifest.source_rank not in source.ranks:
            ranks = f"below {source.parallel.size}"
            raise ManifestMismatch("source_rank", ranks, manifest.source_rank)
        extent = extent_from_proto(manifest.extent)
        tokens, layers = expected.tokens, self._layout.geometry.mamba_layers
        if extent.last_token > tokens or extent.last_layer > layers:
            raise ManifestMismatch("extent", f"within {tokens} tokens, {layers} layers", extent)
        copies = self._copies(source, manifest.source_rank, extent, expected)
        verify_regions(manifest, self._store, copies, TARGET)
        pair = expected.pairs.setdefault(manifest.source_rank, _Pair())
        if manifest.number in pair.extents or manifest.number >= _MOST_PARTS:
            raise ManifestMismatch("number", "one for each part", manifest.number)
        pair.extents[manifest.number] = extent
        for kind, rows in copies.items():
            pair.moved[kind] = pair.moved.get(kind, 0) + int(rows[:, LENGTH].sum())
        if manifest.last:
            _check_tokens(manifest, expected)
            pair.last = manifest
        if pair.last is not None and len(pair.extents) > pair.last.number:
            self._check_whole(source, manifest.source_rank, pair, expected)
        return manifest.source_rank

    def _check_whole(
        self, source: StateLayout, source_rank: int, pair: _Pair, expected: _Expected
    ) -> None:
        """All parts together are the whole: none overlaps, and no byte is missing."""
        assert pair.last is not None
        parts = [pair.extents[number] for number in sorted(pair.extents)]
        for earlier, later in pairwise(part for part in parts if part.last_token):
            if later.first_token < earlier.last_token:
                raise ManifestMismatch("extent", f"from token {earlier.last_token}", later)
        for earlier, later in pairwise(part for part in parts if part.last_layer):
            if later.first_layer < earlier.last_layer:
                raise ManifestMismatch("extent", f"from layer {earlier.last_layer}", later)
        whole = Extent.whole(self._layout, pair.last.tokens)
        copies = self._copies(source, source_rank, whole, expected)
        wanted = {kind: int(rows[:, LENGTH].sum()) for kind, rows in copies.items()}
        compare("bytes of all parts", sorted(wanted.items()), sorted(pair.moved.items()))

    def _copies(
        self, source: StateLayout, source_rank: int, extent: Extent, expected: _Expected
    ) -> PairCopies:
        # Where the bytes came from changes neither their order nor their places here.
        here = Places(range(source.blocks_for(expected.tokens)), 0)
        return reshard_pair(
            source, self._layout, source_rank, self._rank, extent, here, expected.there
        )

    def _clear_unused(self, command: Expect) -> None:
        """Zero the places after this rank's last token: attention reads whole blocks."""
        parallel, block_tokens = self._layout.parallel, self._layout.geometry.block_tokens
        least = command.tokens - command.growth_tokens
        held = parallel.local_tokens(parallel.kvp_rank(self._rank), least)
        needed = self._layout.blocks_for(command.tokens)
        for index in range(held // block_tokens, needed):
            self._store.clear_tail(command.blocks[index], max(held - index * block_tokens, 0))


def _check_tokens(manifest: Manifest, expected: _Expected) -> None:
    """A state has as many tokens as were reserved, or says which it has more than were known."""
    if not expected.growth_tokens:
        compare("tokens", expected.tokens, manifest.tokens)
        return
    least = expected.tokens - expected.growth_tokens
    if not least <= manifest.tokens <= expected.tokens:
        raise ManifestMismatch("tokens", f"{least} to {expected.tokens}", manifest.tokens)
    compare("made_token_ids", manifest.tokens - least, len(manifest.made_token_ids))
