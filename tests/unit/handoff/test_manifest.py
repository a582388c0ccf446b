"""A part is accepted when it is exactly the one expected, and otherwise names what differs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from protos.tandem.v1.common_pb2 import ReasonCode
from protos.tandem.v1.handoff_pb2 import HandoffControl, Manifest, ManifestRegion
from tests.unit.state.shapes import SMALL
from workers.handoff.manifest import (
    ModelVersion,
    describe,
    extent_to_proto,
    from_notification,
    to_notification,
)
from workers.handoff.messages import Expect, Expecting, PairArrived, PairRefused
from workers.handoff.rank_receiver import RankReceiver
from workers.parallel.layout import ParallelLayout
from workers.state.copies import TARGET
from workers.state.layout import DRAFT_KV, KV, StateLayout
from workers.state.reshard import Extent, Places, reshard_pair
from workers.state.store import StateStore

MODEL = ModelVersion("a-model", 2)
LAYOUT = StateLayout(SMALL)
BLOCKS, SLOT, TOKENS = (3, 0, 1), 1, 9
WHOLE = Extent.whole(LAYOUT, TOKENS)
FIRST, REST = Extent(0, 4), Extent(4, 9, 0, 3, True)


def _receiver(store: StateStore) -> RankReceiver:
    receiver = RankReceiver(store, LAYOUT, 0, MODEL)
    assert receiver.expect(Expect(77, BLOCKS, SLOT, TOKENS)) == [Expecting(0, 77)]
    generator = torch.Generator().manual_seed(1)
    for tensor in (store.tensors.kv, store.tensors.conv, store.tensors.ssm):
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return receiver


def _manifest(store: StateStore, extent: Extent = WHOLE, number: int = 0) -> Manifest:
    """What a sender says that has written just what is in the store."""
    places = Places(BLOCKS, SLOT)
    copies = reshard_pair(LAYOUT, LAYOUT, 0, 0, extent, places, places)
    return Manifest(
        reservation=77,
        transfer=5,
        model_fingerprint=MODEL.fingerprint,
        epoch=MODEL.epoch,
        source_layout=LAYOUT.to_proto(),
        number=number,
        extent=extent_to_proto(extent),
        regions=describe(store, copies, TARGET),
        last=extent.hidden,
        tokens=TOKENS if extent.hidden else 0,
        first_token_id=6,
    )


@pytest.fixture
def store() -> StateStore:
    return StateStore(SMALL, blocks=4, slots=2)


def test_the_right_manifest_survives_the_way_and_is_accepted(store: StateStore) -> None:
    receiver = _receiver(store)
    received = from_notification(to_notification(_manifest(store)))
    assert isinstance(received, Manifest)
    (event,) = receiver.accept(received, "prefill")
    assert event == PairArrived(0, 77, 5, 0, LAYOUT.to_proto().SerializeToString(), TOKENS, 6)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_parts_are_whole_in_any_order(store: StateStore, order: tuple[int, int]) -> None:
    receiver = _receiver(store)
    parts = [_manifest(store, FIRST, 0), _manifest(store, REST, 1)]
    assert receiver.accept(parts[order[0]], "prefill") == []
    (event,) = receiver.accept(parts[order[1]], "prefill")
    assert isinstance(event, PairArrived)


@pytest.mark.parametrize(
    ("extents", "words"),
    [
        ((REST,), "bytes of all parts"),
        ((Extent(0, 5), REST), "extent: expected from token 5"),
        ((FIRST, Extent(0, 0, 0, 1), REST), "extent: expected from layer 1"),
        ((FIRST, Extent(4, 9, 1, 3, True)), "bytes of all parts"),
    ],
)
def test_parts_that_overlap_or_leave_gaps_are_refused(
    store: StateStore, extents: tuple[Extent, ...], words: str
) -> None:
    receiver = _receiver(store)
    events = []
    for number, extent in enumerate(extents):
        events += receiver.accept(_manifest(store, extent, number), "prefill")
    (event,) = events
    assert isinstance(event, PairRefused)
    assert words in event.detail


def _set(field: str, value: object) -> Callable[[Manifest], None]:
    return lambda manifest: setattr(manifest, field, value)


def _set_layout(field: str, value: object) -> Callable[[Manifest], None]:
    return lambda manifest: setattr(manifest.source_layout, field, value)


def _set_extent(field: str, value: object) -> Callable[[Manifest], None]:
    return lambda manifest: setattr(manifest.extent, field, value)


def _drop_region(manifest: Manifest) -> None:
    del manifest.regions[1]


def _add_region(manifest: Manifest) -> None:
    manifest.regions.append(ManifestRegion(kind=DRAFT_KV, bytes=1))


def _swap_regions(manifest: Manifest) -> None:
    first, second = manifest.regions[0], manifest.regions[1]
    kind, length = first.kind, first.bytes
    first.kind, first.bytes = second.kind, second.bytes
    second.kind, second.bytes = kind, length


def _fewer_bytes(manifest: Manifest) -> None:
    manifest.regions[2].bytes -= 4


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (_set("model_fingerprint", "other"), "model_fingerprint"),
        (_set("epoch", 3), "epoch"),
        (_set_layout("dtype", "float16"), "layout.dtype"),
        (_set_layout("drafts", True), "layout.drafts"),
        (_set_layout("kvp", 3), "layout"),
        (_set_layout("block_tokens", 0), "layout"),
        (_set("target_rank", 1), "target_rank"),
        (_set("source_rank", 1), "source_rank"),
        (_set("number", 10_000), "number"),
        (_set("tokens", 8), "tokens"),
        (_set_extent("last_token", 10), "extent"),
        (_set_extent("last_layer", 4), "extent"),
        (_set_extent("last_token", 8), "regions"),
        (_drop_region, "regions"),
        (_add_region, "regions"),
        (_swap_regions, "regions"),
        (_fewer_bytes, "regions"),
    ],
)
def test_each_wrong_field_is_refused_by_name(
    store: StateStore, change: Callable[[Manifest], None], field: str
) -> None:
    receiver = _receiver(store)
    manifest = _manifest(store)
    change(manifest)
    (event,) = receiver.accept(manifest, "prefill-1")
    assert isinstance(event, PairRefused)
    assert event.reason == ReasonCode.REASON_MANIFEST_MISMATCH
    assert event.detail.startswith(f"manifest from prefill-1: {field}: expected ")


@settings(deadline=None)
@given(st.sampled_from(["kv", "conv", "ssm"]), st.data())
def test_any_changed_byte_of_the_request_is_found(which: str, data: st.DataObject) -> None:
    store = StateStore(SMALL, blocks=4, slots=2)
    receiver = _receiver(store)
    manifest = _manifest(store)
    if which == "kv":
        token = data.draw(st.integers(0, TOKENS - 1))
        part = store.tensors.kv[BLOCKS[token // 4], :, :, :, token % 4]
        index = tuple(data.draw(st.integers(0, size - 1)) for size in part.shape)
        part[index] += 1
    else:
        part = getattr(store.tensors, which)[SLOT].view(torch.uint8).view(-1)
        part[data.draw(st.integers(0, part.numel() - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (event,) = receiver.accept(manifest, "prefill")
    assert isinstance(event, PairRefused)
    assert event.reason == ReasonCode.REASON_CHECKSUM_MISMATCH
    assert "checksum of STATE_KIND" in event.detail


def test_memory_of_other_requests_and_unused_places_do_not_matter(store: StateStore) -> None:
    receiver = _receiver(store)
    manifest = _manifest(store)
    store.tensors.kv[2] = 1
    store.tensors.kv[BLOCKS[2], :, :, :, 1:] = 1
    store.tensors.ssm[0] = 1
    (event,) = receiver.accept(manifest, "prefill")
    assert isinstance(event, PairArrived)


def test_the_checksum_is_xxh3_64_of_the_bytes_in_order(store: StateStore) -> None:
    _receiver(store)
    places = Places(BLOCKS, SLOT)
    copies = reshard_pair(LAYOUT, LAYOUT, 0, 0, Extent(0, 8), places, places)
    (region,) = describe(store, copies, TARGET)
    blocks = store.tensors.kv[list(BLOCKS[:2])].permute(0, 3, 1, 2, 4, 5)  # as they lie in memory
    whole = blocks.contiguous().view(torch.uint8).numpy().tobytes()
    assert region.kind == KV
    assert region.checksum == xxhash.xxh3_64_intdigest(whole)


def test_expecting_state_clears_what_lies_after_its_last_token() -> None:
    layout = StateLayout(SMALL, ParallelLayout(kvp=2, tpf=2, interleave=2))
    for rank, held in ((0, 5), (1, 4)):  # of 9 tokens: 0 1 4 5 8 and 2 3 6 7
        store = StateStore(layout.rank_geometry, blocks=4, slots=2)
        store.tensors.kv.fill_(1)
        RankReceiver(store, layout, rank, MODEL).expect(Expect(77, (3, 1), SLOT, 9))
        assert store.tensors.kv[3].eq(1).all()
        assert store.tensors.kv[1, :, :, :, held - 4 :].eq(0).all()
        assert store.tensors.kv[1, :, :, :, : held - 4].eq(1).all()
        assert store.tensors.kv[[0, 2]].eq(1).all()


def test_where_a_state_may_grow_all_that_may_stay_unused_is_cleared() -> None:
    store = StateStore(SMALL, blocks=4, slots=2)
    store.tensors.kv.fill_(1)
    RankReceiver(store, LAYOUT, 0, MODEL).expect(Expect(77, BLOCKS, SLOT, 11, growth_tokens=5))
    first, second, third = (store.tensors.kv[block] for block in BLOCKS)
    assert first.eq(1).all()
    assert second[:, :, :, :2].eq(1).all()
    assert second[:, :, :, 2:].eq(0).all()
    assert third.eq(0).all()


@pytest.mark.parametrize(
    ("tokens", "made", "problem"),
    [
        (9, (4, 5, 6), ""),
        (6, (), ""),
        (11, (1, 2, 3, 4, 5), ""),
        (5, (), "tokens: expected 6 to 11, found 5"),
        (12, (1, 2, 3, 4, 5, 6), "extent: expected "),
        (9, (5, 6), "made_token_ids: expected 3, found 2"),
        (9, (), "made_token_ids: expected 3, found 0"),
    ],
)
def test_a_state_that_grew_says_which_tokens_were_made(
    store: StateStore, tokens: int, made: tuple[int, ...], problem: str
) -> None:
    receiver = RankReceiver(store, LAYOUT, 0, MODEL)
    receiver.expect(Expect(77, BLOCKS, SLOT, 11, growth_tokens=5))
    manifest = _manifest(store, Extent.whole(LAYOUT, tokens))
    manifest.tokens = tokens
    manifest.made_token_ids.extend(made)
    (event,) = receiver.accept(manifest, "decode-1")
    if problem:
        assert isinstance(event, PairRefused)
        assert problem in event.detail
    else:
        layout = LAYOUT.to_proto().SerializeToString()
        assert event == PairArrived(0, 77, 5, 0, layout, tokens, 6, made)


@given(st.binary(max_size=60))
def test_random_bytes_are_no_message(payload: bytes) -> None:
    assert from_notification(b"\0" + payload) is None
    assert from_notification(to_notification(Manifest()) + bytes(70_000)) is None


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_a_damaged_message_is_none_or_refused_but_never_an_error(payload: bytes) -> None:
    store = StateStore(SMALL, blocks=4, slots=2)
    receiver = _receiver(store)
    message = from_notification(to_notification(Manifest()) + payload)
    if isinstance(message, Manifest):
        message.reservation = 77
        (event,) = receiver.accept(message, "prefill")
        assert isinstance(event, PairRefused)
    from_notification(to_notification(HandoffControl()) + payload)


def test_a_manifest_for_no_reservation_is_dropped(
    store: StateStore, caplog: pytest.LogCaptureFixture
) -> None:
    receiver = _receiver(store)
    manifest = _manifest(store)
    manifest.reservation = 78
    assert receiver.accept(manifest, "prefill") == []
    assert "is unknown, used or over" in caplog.text
    receiver.forget(77)
    assert not receiver.busy


def test_layouts_of_the_same_state_are_compared_by_what_they_hold(store: StateStore) -> None:
    """Another block size at the source changes nothing here."""
    receiver = _receiver(store)
    source = StateLayout(replace(SMALL, block_tokens=2))
    copies = reshard_pair(source, LAYOUT, 0, 0, WHOLE, Places(range(5), 0), Places(BLOCKS, SLOT))
    manifest = _manifest(store)
    del manifest.regions[:]
    manifest.regions.extend(describe(store, copies, TARGET))
    manifest.source_layout.CopyFrom(source.to_proto())
    (event,) = receiver.accept(manifest, "prefill")
    assert isinstance(event, PairArrived)
