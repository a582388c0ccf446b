"""Which parts of a worker's memory make up the state of one request.

Exists as a pure description (numbers of blocks and slots, no addresses, no tensors), so that what
is sent, what is expected and what is checked are computed by the same code on both workers.
One rank holds everything for now: KVP 1, TPA 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from protos.tandem.v1.handoff_pb2 import Layout, StateKind
from workers.state.geometry import StateGeometry


@dataclass(frozen=True, slots=True)
class Region:
    """All state of one kind: parts of equal size, in the order of the tokens that they cover.

    A part is a KV block or the whole state of a slot; `parts` are their numbers in the pool.
    """

    kind: StateKind.ValueType
    part_bytes: int
    parts: tuple[int, ...]

    @property
    def length_bytes(self) -> int:
        """Bytes of all parts together."""
        return self.part_bytes * len(self.parts)


@dataclass(frozen=True, slots=True)
class StateLayout:
    """How one worker holds state: its sizes and the way that it is shared over ranks."""

    geometry: StateGeometry
    kvp: int = 1
    tpa: int = 1

    def __post_init__(self) -> None:
        for name, value in (("kvp", self.kvp), ("tpa", self.tpa)):
            if value != 1:
                raise ValueError(f"{name} {value}: state over several ranks is not built; use 1")

    def to_proto(self) -> Layout:
        """The layout as tickets and manifests carry it."""
        return Layout(kvp=self.kvp, tpa=self.tpa, block_tokens=self.geometry.block_tokens)

    def regions(self, blocks: Sequence[int], slot: int, tokens: int) -> tuple[Region, ...]:
        """The state of a request that has read `tokens` tokens and holds `blocks` and `slot`.

        Blocks beyond those that the tokens reach are left out, and so are kinds without bytes.

        Raises:
            ValueError: there are no tokens, or too few blocks for them.
        """
        if tokens < 1:
            raise ValueError(f"tokens {tokens}: a request without tokens has no state")
        geometry = self.geometry
        needed = geometry.blocks_for(tokens)
        if len(blocks) < needed:
            raise ValueError(
                f"blocks: {tokens} tokens need {needed} blocks of {geometry.block_tokens} tokens, "
                f"found {len(blocks)}"
            )
        candidates = (
            Region(
                StateKind.STATE_KIND_ATTENTION_KV,
                geometry.kv_block_bytes,
                tuple(blocks[:needed]),
            ),
            Region(StateKind.STATE_KIND_MAMBA_CONV, geometry.conv_slot_bytes, (slot,)),
            Region(StateKind.STATE_KIND_MAMBA_SSM, geometry.ssm_slot_bytes, (slot,)),
            Region(
                StateKind.STATE_KIND_DRAFT_KV,
                geometry.draft_kv_block_bytes,
                tuple(blocks[:needed]),
            ),
            Region(StateKind.STATE_KIND_DRAFT_HIDDEN, geometry.draft_hidden_bytes, (slot,)),
        )
        return tuple(region for region in candidates if region.length_bytes)
