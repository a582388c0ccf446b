"""Where the state of requests lives on the ranks of one group: sizes and shares, no addresses.

Exists so that whoever sends state, whoever takes it in and whoever checks it compute the same
places from the same few numbers. The cut is that of the weights (`workers.checkpoint.shard`): KV
heads over TPA and tokens over KVP, Mamba heads over all N ranks, B/C groups over N. With more TPA
ranks than KV heads, or more ranks than groups, a head or group is on several ranks; the draft's
hidden state is on every rank.

All ranks hold equally many blocks and slots, under the same numbers. A block holds `block_tokens`
tokens of each KVP rank, so `block_tokens` x kvp tokens of the request.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

from protos.tandem.v1.handoff_pb2 import Layout, StateKind
from workers.parallel.layout import ParallelLayout
from workers.state.geometry import StateGeometry

KV = StateKind.STATE_KIND_ATTENTION_KV
CONV = StateKind.STATE_KIND_MAMBA_CONV
SSM = StateKind.STATE_KIND_MAMBA_SSM
DRAFT_KV = StateKind.STATE_KIND_DRAFT_KV
DRAFT_HIDDEN = StateKind.STATE_KIND_DRAFT_HIDDEN


@dataclass(frozen=True)
class StateLayout:
    """How one group of ranks holds state.

    Attributes:
        geometry: of the whole model.
        parallel: how the ranks share it; of that, state depends on kvp, tpa and interleave.

    Raises:
        ValueError: heads, groups or tokens cannot be shared that way.
    """

    geometry: StateGeometry
    parallel: ParallelLayout = field(default_factory=ParallelLayout)

    def __post_init__(self) -> None:
        geometry, parallel = self.geometry, self.parallel
        if geometry.block_tokens % parallel.interleave and parallel.kvp > 1:
            raise ValueError(
                f"interleave {parallel.interleave}: must divide block_tokens "
                f"{geometry.block_tokens}, so that a turn of a KVP rank stays in one block"
            )
        if geometry.attn_layers or geometry.draft_attn_layers:
            _check_shares(geometry.kv_heads, parallel.tpa, "kv_heads", "tpa")
        if geometry.mamba_layers:
            if geometry.ssm_heads % parallel.size:
                raise ValueError(
                    f"ssm_heads {geometry.ssm_heads}: not divisible by the {parallel.size} ranks"
                )
            _check_shares(geometry.ssm_groups, parallel.size, "ssm_groups", "ranks")

    @cached_property
    def rank_geometry(self) -> StateGeometry:
        """The shape of the state on one rank, the same on each."""
        whole, ranks = self.geometry, self.parallel.size
        return replace(
            whole,
            kv_heads=max(whole.kv_heads // self.parallel.tpa, min(whole.kv_heads, 1)),
            ssm_heads=whole.ssm_heads // ranks,
            ssm_groups=max(whole.ssm_groups // ranks, min(whole.ssm_groups, 1)),
        )

    @property
    def ranks(self) -> range:
        """The numbers of the ranks."""
        return range(self.parallel.size)

    @property
    def block_span_tokens(self) -> int:
        """Tokens of a request that one block number stands for, over all KVP ranks."""
        return self.geometry.block_tokens * self.parallel.kvp

    @property
    def head_replicas(self) -> int:
        """TPA ranks that hold the same KV head."""
        return max(1, self.parallel.tpa // max(self.geometry.kv_heads, 1))

    @property
    def group_replicas(self) -> int:
        """Ranks that hold the B and C of the same group."""
        return max(1, self.parallel.size // max(self.geometry.ssm_groups, 1))

    @property
    def kinds(self) -> tuple[StateKind.ValueType, ...]:
        """The kinds of state that there are, each with its bytes on every rank."""
        return tuple(kind for kind in StateKind.values() if self.part_bytes(kind))

    def part_bytes(self, kind: StateKind.ValueType) -> int:
        """Bytes of one block or slot of a kind on one rank."""
        mine = self.rank_geometry
        return {
            KV: mine.kv_block_bytes,
            CONV: mine.conv_slot_bytes,
            SSM: mine.ssm_slot_bytes,
            DRAFT_KV: mine.draft_kv_block_bytes,
            DRAFT_HIDDEN: mine.draft_hidden_bytes,
        }.get(kind, 0)

    def blocks_for(self, tokens: int) -> int:
        """Block numbers that a request of `tokens` tokens takes."""
        return -(-tokens // self.block_span_tokens)

    def kv_heads(self, rank: int) -> range:
        """The KV heads that a rank holds."""
        held = self.rank_geometry.kv_heads
        first = self.parallel.tpa_rank(rank) // self.head_replicas * held
        return range(first, first + held)

    def ssm_heads(self, rank: int) -> range:
        """The Mamba heads that a rank holds."""
        held = self.rank_geometry.ssm_heads
        return range(rank * held, (rank + 1) * held)

    def ssm_groups(self, rank: int) -> range:
        """The groups of which a rank holds B and C."""
        held = self.rank_geometry.ssm_groups
        first = rank // self.group_replicas * held
        return range(first, first + held)

    def to_proto(self) -> Layout:
        """The layout as tickets and manifests carry it."""
        return Layout(
            kvp=self.parallel.kvp,
            tpa=self.parallel.tpa,
            interleave=self.parallel.interleave,
            block_tokens=self.geometry.block_tokens,
            dtype=str(self.geometry.dtype).removeprefix("torch."),
            drafts=self.geometry.draft_hidden_size > 0,
        )

    def of_peer(self, layout: Layout) -> StateLayout:
        """The layout of another worker with the same model.

        Raises:
            ValueError: sizes that no group of this model can have.
        """
        ranks = layout.kvp * layout.tpa
        parallel = ParallelLayout(
            kvp=layout.kvp,
            tpa=layout.tpa,
            tpf=ranks,
            interleave=layout.interleave,
        )
        geometry = replace(self.geometry, block_tokens=layout.block_tokens)
        return StateLayout(geometry, parallel)


def _check_shares(count: int, ranks: int, what: str, by: str) -> None:
    """`count` parts over `ranks`: equally many each, or equally many ranks for each part."""
    if count and count % ranks and ranks % count:
        raise ValueError(f"{what} {count}: cannot be shared equally by {by} {ranks}")
