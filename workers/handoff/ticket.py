"""The ticket: where decode wants the state of one request, and reading it on the prefill side.

Exists so that a prefill worker needs no connection to a decode worker before the first write: the
ticket brings identities, keys and base addresses along. It stays small, because an address is a
base and a number; every number is checked against the tensor that it counts in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from protos.tandem.v1.handoff_pb2 import HandoffTicket, RankTarget, StateKind, StateTensor
from workers.handoff.agent import NixlAgent, RemoteMemory
from workers.handoff.errors import ManifestMismatch
from workers.handoff.manifest import ModelVersion, compare, kind_name, verify_agreement
from workers.state.copies import LENGTH, SOURCE, TARGET, Copies, coalesce
from workers.state.layout import DRAFT_KV, KV, StateLayout
from workers.state.reshard import PairCopies, Places
from workers.state.store import StateStore

# More ranks or tokens than any ticket of ours has: whoever sends it is refused before work begins.
_MOST_RANKS = 256
_MOST_METADATA_BYTES = 64 * 1024


def make_target(agent: NixlAgent, store: StateStore, layout: StateLayout) -> RankTarget:
    """What others must know of one rank's memory; it never changes."""
    memory = store.memory()
    return RankTarget(
        agent_name=agent.name,
        agent_metadata=agent.metadata,
        memory_type=memory.memory_type,
        device_id=memory.device_id,
        tensors=[
            StateTensor(
                kind=kind,
                address=store.base(kind).address,
                part_bytes=layout.part_bytes(kind),
                parts=store.base(kind).length_bytes // layout.part_bytes(kind),
            )
            for kind in layout.kinds
        ],
    )


@dataclass(frozen=True, slots=True)
class Destination:
    """A ticket that was read and found good."""

    reservation: int
    layout: StateLayout
    ranks: tuple[RankTarget, ...]
    places: Places
    tokens: int
    lease_s: float

    def remote(self, rank: int) -> RemoteMemory:
        """The agent and the memory of one rank."""
        target = self.ranks[rank]
        return RemoteMemory(
            target.agent_name, target.agent_metadata, target.memory_type, target.device_id
        )


def read_ticket(ticket: HandoffTicket, model: ModelVersion, mine: StateLayout) -> Destination:
    """Check that a ticket asks for what this worker's state can give.

    Raises:
        ManifestMismatch: the workers differ in model, epoch or kinds of state, or the ticket
            contradicts itself.
    """
    layout = verify_agreement(ticket.model_fingerprint, ticket.epoch, ticket.layout, model, mine)
    if len(ticket.ranks) > _MOST_RANKS:
        raise ManifestMismatch("ranks", f"at most {_MOST_RANKS}", len(ticket.ranks))
    compare("ranks", layout.parallel.size, len(ticket.ranks))
    if ticket.tokens < 1 or ticket.growth_tokens >= ticket.tokens:
        raise ManifestMismatch("tokens", "at least 1", ticket.tokens - ticket.growth_tokens)
    needed = layout.blocks_for(ticket.tokens)
    if len(ticket.blocks) < needed:
        raise ManifestMismatch("blocks", f"{needed} for {ticket.tokens} tokens", len(ticket.blocks))
    blocks = tuple(ticket.blocks[:needed])
    for rank in ticket.ranks:
        if len(rank.agent_metadata) > _MOST_METADATA_BYTES:
            raise ManifestMismatch(
                "agent_metadata",
                f"at most {_MOST_METADATA_BYTES} bytes",
                f"{len(rank.agent_metadata)} bytes",
            )
        _check_tensors(rank, layout, max(blocks), ticket.slot)
    return Destination(
        ticket.reservation,
        layout,
        tuple(ticket.ranks),
        Places(blocks, ticket.slot),
        ticket.tokens,
        ticket.lease_ms / 1000.0,
    )


def address(copies: PairCopies, store: StateStore, target: RankTarget) -> Copies:
    """Descriptors of all kinds: the fewest, with addresses in place of offsets."""
    bases = {tensor.kind: tensor.address for tensor in target.tensors}
    rows = []
    for kind, offsets in copies.items():
        # Each kind for itself: kinds live in separate allocations.
        joined = coalesce(offsets)
        rows.append(
            np.stack(
                (
                    joined[:, SOURCE] + np.uint64(store.base(kind).address),
                    joined[:, TARGET] + np.uint64(bases[kind]),
                    joined[:, LENGTH],
                ),
                axis=1,
            )
        )
    return np.concatenate(rows) if rows else np.empty((0, 3), dtype=np.uint64)


def _check_tensors(rank: RankTarget, layout: StateLayout, last_block: int, slot: int) -> None:
    """Every number of the ticket is inside the tensors of a rank."""
    compare(
        "kinds of state",
        ", ".join(StateKind.Name(kind) for kind in layout.kinds),
        ", ".join(kind_name(tensor.kind) for tensor in rank.tensors),
    )
    for tensor in rank.tensors:
        name = StateKind.Name(tensor.kind)
        compare(f"{name}.part_bytes", layout.part_bytes(tensor.kind), tensor.part_bytes)
        number = last_block if tensor.kind in (KV, DRAFT_KV) else slot
        if number >= tensor.parts:
            raise ManifestMismatch(f"{name} part", f"below {tensor.parts}", number)
