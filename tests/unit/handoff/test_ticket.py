"""A ticket that does not fit what is to be sent is refused before a byte moves."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from protos.tandem.v1.handoff_pb2 import HandoffTicket, RankTarget, StateTensor
from tests.unit.state.shapes import SMALL
from workers.handoff.errors import ManifestMismatch
from workers.handoff.manifest import ModelVersion
from workers.handoff.ticket import address, read_ticket
from workers.parallel.layout import ParallelLayout
from workers.state.copies import LENGTH, SOURCE, TARGET
from workers.state.layout import CONV, KV, SSM, StateLayout
from workers.state.reshard import Extent, Places, reshard_pair
from workers.state.store import StateStore

MODEL = ModelVersion("a-model", 2)
MINE = StateLayout(SMALL)
THEIRS = StateLayout(SMALL, ParallelLayout(kvp=2, tpf=2, interleave=4))
BASE = 1 << 40
PARTS = 8


def _ticket(layout: StateLayout = THEIRS) -> HandoffTicket:
    """A ticket for memory far away."""
    return HandoffTicket(
        reservation=1,
        worker_id="decode-1",
        model_fingerprint=MODEL.fingerprint,
        epoch=MODEL.epoch,
        layout=layout.to_proto(),
        ranks=[
            RankTarget(
                agent_name=f"decode-1.{rank}",
                memory_type="VRAM",
                device_id=3,
                tensors=[
                    StateTensor(
                        kind=kind,
                        address=BASE * kind,
                        part_bytes=layout.part_bytes(kind),
                        parts=PARTS,
                    )
                    for kind in layout.kinds
                ],
            )
            for rank in layout.ranks
        ],
        blocks=[2, 3, 4],
        slot=1,
        tokens=12,
        lease_ms=1500,
    )


def test_a_good_ticket_is_read() -> None:
    destination = read_ticket(_ticket(), MODEL, MINE)
    assert destination.layout == THEIRS
    assert destination.places == Places((2, 3), 1)  # of 12 tokens, 8 to a block
    assert (destination.tokens, destination.lease_s) == (12, 1.5)
    remote = destination.remote(1)
    assert (remote.agent_name, remote.memory_type, remote.device_id) == ("decode-1.1", "VRAM", 3)


def test_addresses_are_bases_and_offsets_and_kinds_stay_apart() -> None:
    store = StateStore(SMALL, blocks=8, slots=2)
    destination = read_ticket(_ticket(MINE), MODEL, MINE)
    copies = reshard_pair(
        MINE, MINE, 0, 0, Extent.whole(MINE, 12), Places((5, 6, 7), 0), destination.places
    )
    rows = address(copies, store, destination.ranks[0])
    assert rows[:, SOURCE].tolist() == [
        store.tensors.kv[5].data_ptr(),
        store.tensors.conv[0].data_ptr(),
        store.tensors.ssm[0].data_ptr(),
    ]
    assert rows[:, TARGET].tolist() == [
        BASE * KV + 2 * SMALL.kv_block_bytes,
        BASE * CONV + SMALL.conv_slot_bytes,
        BASE * SSM + SMALL.ssm_slot_bytes,
    ]
    assert rows[:, LENGTH].tolist() == [
        3 * SMALL.kv_block_bytes,
        SMALL.conv_slot_bytes,
        SMALL.ssm_slot_bytes,
    ]


def _set(field: str, value: object) -> Callable[[HandoffTicket], None]:
    return lambda ticket: setattr(ticket, field, value)


def _layout(field: str, value: object) -> Callable[[HandoffTicket], None]:
    return lambda ticket: setattr(ticket.layout, field, value)


def _three_ranks(ticket: HandoffTicket) -> None:
    ticket.ranks.add().CopyFrom(ticket.ranks[0])


def _many_ranks(ticket: HandoffTicket) -> None:
    ticket.ranks.extend([ticket.ranks[0]] * 255)


def _missing_kind(ticket: HandoffTicket) -> None:
    del ticket.ranks[1].tensors[2]


def _doubled_kind(ticket: HandoffTicket) -> None:
    ticket.ranks[0].tensors.add().CopyFrom(ticket.ranks[0].tensors[0])


def _smaller_part(ticket: HandoffTicket) -> None:
    ticket.ranks[1].tensors[1].part_bytes -= 2


def _fewer_blocks(ticket: HandoffTicket) -> None:
    del ticket.blocks[1:]


def _block_outside(ticket: HandoffTicket) -> None:
    ticket.blocks[1] = PARTS


def _huge_metadata(ticket: HandoffTicket) -> None:
    ticket.ranks[0].agent_metadata = bytes(70000)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set("model_fingerprint", "other"), "model_fingerprint: expected a-model, found other"),
        (_set("epoch", 9), "epoch: expected 2, found 9"),
        (_layout("dtype", "float16"), "layout.dtype: expected bfloat16, found float16"),
        (_layout("drafts", True), "layout.drafts: expected False, found True"),
        (_layout("block_tokens", 6), "interleave 4: must divide block_tokens 6"),
        (_layout("block_tokens", 0), "block_tokens 0: must be at least 1"),
        (_layout("tpa", 3), "cannot be shared equally by tpa 3"),
        (_layout("kvp", 0), "kvp 0: must be at least 1"),
        (_three_ranks, "ranks: expected 2, found 3"),
        (_many_ranks, "ranks: expected at most 256, found 257"),
        (_missing_kind, "kinds of state: expected "),
        (_doubled_kind, "kinds of state: expected "),
        (_smaller_part, "STATE_KIND_MAMBA_CONV.part_bytes: expected "),
        (_set("tokens", 0), "tokens: expected at least 1, found 0"),
        (_fewer_blocks, "blocks: expected 2 for 12 tokens, found 1"),
        (_block_outside, "STATE_KIND_ATTENTION_KV part: expected below 8, found 8"),
        (_set("slot", PARTS), "STATE_KIND_MAMBA_CONV part: expected below 8, found 8"),
        (_huge_metadata, "agent_metadata: expected at most 65536 bytes, found 70000 bytes"),
    ],
)
def test_each_misfit_is_refused_by_name(
    change: Callable[[HandoffTicket], None], words: str
) -> None:
    ticket = _ticket()
    change(ticket)
    with pytest.raises(ManifestMismatch) as caught:
        read_ticket(ticket, MODEL, MINE)
    assert words in str(caught.value)
