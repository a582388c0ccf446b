"""A ticket that does not fit what is to be sent is refused before a byte moves."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from protos.tandem.v1.handoff_pb2 import HandoffTicket, RankTarget, TargetRegion
from tests.unit.state.shapes import SMALL
from workers.handoff.errors import ManifestMismatch
from workers.handoff.manifest import ModelVersion
from workers.handoff.ticket import plan_write
from workers.state.copies import LENGTH, SOURCE, TARGET
from workers.state.layout import Region
from workers.state.store import StateStore

MODEL = ModelVersion("a-model", 2)
BASE = 1 << 40


@pytest.fixture
def store() -> StateStore:
    return StateStore(SMALL, blocks=8, slots=2)


def _regions(store: StateStore) -> tuple[Region, ...]:
    return store.layout.regions((2, 3, 4), 1, 12)


def _ticket(store: StateStore) -> HandoffTicket:
    """A ticket for memory far away, the blocks of which lie in a row."""
    regions = [
        TargetRegion(
            kind=region.kind,
            part_bytes=region.part_bytes,
            addresses=[
                BASE * region.kind + part * region.part_bytes for part in range(len(region.parts))
            ],
        )
        for region in _regions(store)
    ]
    return HandoffTicket(
        reservation=1,
        worker_id="decode-1",
        model_fingerprint=MODEL.fingerprint,
        epoch=MODEL.epoch,
        layout=store.layout.to_proto(),
        ranks=[
            RankTarget(agent_name="decode-1.x", memory_type="VRAM", device_id=3, regions=regions)
        ],
    )


def test_contiguous_blocks_are_one_copy_and_kinds_stay_apart(store: StateStore) -> None:
    plan = plan_write(_ticket(store), MODEL, store, _regions(store))
    assert (plan.remote.agent_name, plan.remote.memory_type) == ("decode-1.x", "VRAM")
    assert plan.remote.device_id == 3
    assert plan.copies[:, SOURCE].tolist() == [
        store.tensors.kv[2].data_ptr(),
        store.tensors.conv[1].data_ptr(),
        store.tensors.ssm[1].data_ptr(),
    ]
    assert plan.copies[:, TARGET].tolist() == [BASE * kind for kind in (1, 2, 3)]
    assert plan.copies[:, LENGTH].tolist() == [
        3 * SMALL.kv_block_bytes,
        SMALL.conv_slot_bytes,
        SMALL.ssm_slot_bytes,
    ]


def _other_model(ticket: HandoffTicket) -> None:
    ticket.model_fingerprint = "another"


def _other_epoch(ticket: HandoffTicket) -> None:
    ticket.epoch = 9


def _other_blocks(ticket: HandoffTicket) -> None:
    ticket.layout.block_tokens = 32


def _two_ranks(ticket: HandoffTicket) -> None:
    ticket.ranks.add().CopyFrom(ticket.ranks[0])


def _no_rank(ticket: HandoffTicket) -> None:
    del ticket.ranks[:]


def _missing_kind(ticket: HandoffTicket) -> None:
    del ticket.ranks[0].regions[2]


def _doubled_kind(ticket: HandoffTicket) -> None:
    ticket.ranks[0].regions.add().CopyFrom(ticket.ranks[0].regions[0])


def _smaller_part(ticket: HandoffTicket) -> None:
    ticket.ranks[0].regions[1].part_bytes -= 2


def _fewer_blocks(ticket: HandoffTicket) -> None:
    del ticket.ranks[0].regions[0].addresses[2]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_other_model, "model_fingerprint: expected a-model, found another"),
        (_other_epoch, "epoch: expected 2, found 9"),
        (_other_blocks, "layout.block_tokens: expected 4, found 32"),
        (_two_ranks, "ranks: expected 1, found 2"),
        (_no_rank, "ranks: expected 1, found 0"),
        (_missing_kind, "kinds of state: expected "),
        (_doubled_kind, "kinds of state: expected "),
        (_smaller_part, "STATE_KIND_MAMBA_CONV.part_bytes: expected 432, found 430"),
        (_fewer_blocks, "STATE_KIND_ATTENTION_KV parts: expected 3, found 2"),
    ],
)
def test_each_misfit_is_refused_by_name(
    store: StateStore, change: Callable[[HandoffTicket], None], words: str
) -> None:
    ticket = _ticket(store)
    change(ticket)
    with pytest.raises(ManifestMismatch) as caught:
        plan_write(ticket, MODEL, store, _regions(store))
    assert words in str(caught.value)
