"""The ticket: where decode wants the state of one request, and reading it on the prefill side.

Exists so that a prefill worker needs no connection to a decode worker before the first write:
the ticket brings the identity, the keys and the addresses along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from protos.tandem.v1.handoff_pb2 import HandoffTicket, RankTarget, StateKind, TargetRegion
from workers.handoff.agent import NixlAgent, RemoteMemory
from workers.handoff.errors import ManifestMismatch
from workers.handoff.manifest import ModelVersion, kind_name, verify_agreement
from workers.state.copies import Copies, coalesce, make_copies
from workers.state.layout import Region
from workers.state.store import StateStore


def make_ticket(
    reservation: int,
    worker_id: str,
    model: ModelVersion,
    agent: NixlAgent,
    store: StateStore,
    regions: Sequence[Region],
) -> HandoffTicket:
    """Offer `regions` of `store` to whoever holds the ticket."""
    memory = store.memory()
    return HandoffTicket(
        reservation=reservation,
        worker_id=worker_id,
        model_fingerprint=model.fingerprint,
        epoch=model.epoch,
        layout=store.layout.to_proto(),
        ranks=[
            RankTarget(
                agent_name=agent.name,
                agent_metadata=agent.metadata,
                memory_type=memory.memory_type,
                device_id=memory.device_id,
                regions=[
                    TargetRegion(
                        kind=region.kind,
                        part_bytes=region.part_bytes,
                        addresses=store.addresses(region).tolist(),
                    )
                    for region in regions
                ],
            )
        ],
    )


@dataclass(frozen=True, slots=True, eq=False)
class WritePlan:
    """What a ticket and local state come to: who is written to, and which bytes go where."""

    remote: RemoteMemory
    copies: Copies


def plan_write(
    ticket: HandoffTicket, model: ModelVersion, store: StateStore, regions: Sequence[Region]
) -> WritePlan:
    """Check that the ticket asks for exactly `regions` of `store`, and pair up the addresses.

    Raises:
        ManifestMismatch: the workers differ in model, epoch, layout or in what is to be moved.
    """
    verify_agreement(
        ticket.model_fingerprint, ticket.epoch, ticket.layout, model, store.layout.to_proto()
    )
    if len(ticket.ranks) != 1:
        raise ManifestMismatch("ranks", 1, len(ticket.ranks))
    rank = ticket.ranks[0]
    copies = [np.empty((0, 3), dtype=np.uint64)]
    wanted = {target.kind: target for target in rank.regions}
    if set(wanted) != {region.kind for region in regions} or len(wanted) != len(rank.regions):
        raise ManifestMismatch(
            "kinds of state",
            ", ".join(kind_name(region.kind) for region in regions),
            ", ".join(kind_name(target.kind) for target in rank.regions),
        )
    for region in regions:
        target = wanted[region.kind]
        name = StateKind.Name(region.kind)
        if target.part_bytes != region.part_bytes:
            raise ManifestMismatch(f"{name}.part_bytes", region.part_bytes, target.part_bytes)
        if len(target.addresses) != len(region.parts):
            raise ManifestMismatch(f"{name} parts", len(region.parts), len(target.addresses))
        # Each kind for itself: kinds live in separate allocations.
        targets = np.array(target.addresses, dtype=np.uint64)
        copies.append(coalesce(make_copies(store.addresses(region), targets, region.part_bytes)))
    return WritePlan(
        RemoteMemory(rank.agent_name, rank.agent_metadata, rank.memory_type, rank.device_id),
        np.concatenate(copies),
    )
