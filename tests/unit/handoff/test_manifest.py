"""A manifest is accepted when it is exactly the one expected, and otherwise names what differs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from protos.tandem.v1.common_pb2 import ReasonCode
from protos.tandem.v1.handoff_pb2 import HandoffTicket, Manifest, ManifestRegion, StateKind
from tests.unit.state.shapes import SMALL
from workers.handoff.errors import ChecksumMismatch, ManifestMismatch
from workers.handoff.manifest import (
    ModelVersion,
    checksum,
    from_notification,
    make_manifest,
    to_notification,
    verify_checksums,
    verify_manifest,
)
from workers.state.store import StateStore

MODEL = ModelVersion("a-model", 2)
BLOCKS, SLOT, TOKENS = (3, 0, 1), 1, 9


@pytest.fixture
def store() -> StateStore:
    store = StateStore(SMALL, blocks=4, slots=2)
    generator = torch.Generator().manual_seed(1)
    for tensor in (store.tensors.kv, store.tensors.conv, store.tensors.ssm):
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return store


def _manifest(store: StateStore) -> Manifest:
    regions = store.layout.regions(BLOCKS, SLOT, TOKENS)
    return make_manifest(store, regions, HandoffTicket(reservation=77), MODEL, TOKENS, 5)


def _verify(store: StateStore, manifest: Manifest) -> None:
    regions = store.layout.regions(BLOCKS, SLOT, TOKENS)
    verify_manifest(manifest, MODEL, store.layout.to_proto(), TOKENS, regions)
    verify_checksums(manifest, store, regions)


def test_the_right_manifest_survives_the_way_and_is_accepted(store: StateStore) -> None:
    received = from_notification(to_notification(_manifest(store)))
    assert received is not None
    assert (received.reservation, received.tokens, received.first_token_id) == (77, 9, 5)
    _verify(store, received)


def _set(field: str, value: object) -> Callable[[Manifest], None]:
    return lambda manifest: setattr(manifest, field, value)


def _set_layout(field: str, value: int) -> Callable[[Manifest], None]:
    return lambda manifest: setattr(manifest.source_layout, field, value)


def _drop_region(manifest: Manifest) -> None:
    del manifest.regions[1]


def _add_region(manifest: Manifest) -> None:
    manifest.regions.append(ManifestRegion(kind=StateKind.STATE_KIND_DRAFT_KV, bytes=1))


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
        (_set_layout("kvp", 2), "layout.kvp"),
        (_set_layout("tpa", 2), "layout.tpa"),
        (_set_layout("block_tokens", 8), "layout.block_tokens"),
        (_set("tokens", 8), "tokens"),
        (_drop_region, "regions"),
        (_add_region, "regions"),
        (_swap_regions, "regions"),
        (_fewer_bytes, "regions"),
    ],
)
def test_each_wrong_field_is_refused_by_name(
    store: StateStore, change: Callable[[Manifest], None], field: str
) -> None:
    manifest = _manifest(store)
    change(manifest)
    with pytest.raises(ManifestMismatch) as caught:
        _verify(store, manifest)
    assert caught.value.field == field
    assert caught.value.reason == ReasonCode.REASON_MANIFEST_MISMATCH
    assert str(caught.value) == (
        f"{field}: expected {caught.value.expected}, found {caught.value.found}"
    )


@given(st.sampled_from(["kv", "conv", "ssm"]), st.data())
def test_any_changed_byte_of_the_request_is_found(which: str, data: st.DataObject) -> None:
    store = StateStore(SMALL, blocks=4, slots=2)
    manifest = _manifest(store)
    index = data.draw(st.sampled_from(BLOCKS)) if which == "kv" else SLOT
    part = getattr(store.tensors, which)[index].view(torch.uint8).view(-1)
    part[data.draw(st.integers(0, part.numel() - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(ChecksumMismatch, match="checksum of STATE_KIND") as caught:
        _verify(store, manifest)
    assert caught.value.reason == ReasonCode.REASON_CHECKSUM_MISMATCH


def test_memory_of_other_requests_does_not_matter(store: StateStore) -> None:
    manifest = _manifest(store)
    store.tensors.kv[2] = 1
    store.tensors.ssm[0] = 1
    _verify(store, manifest)


def test_the_checksum_is_xxh3_64_of_the_bytes_in_order(store: StateStore) -> None:
    region = store.layout.regions(BLOCKS, SLOT, TOKENS)[0]
    whole = store.tensors.kv[list(BLOCKS)].view(torch.uint8).numpy().tobytes()
    assert checksum(store, region) == xxhash.xxh3_64_intdigest(whole)


@given(st.binary(max_size=60))
def test_random_bytes_are_no_manifest(payload: bytes) -> None:
    assert from_notification(b"\0" + payload) is None


@given(st.binary(max_size=60))
def test_a_damaged_manifest_is_none_or_refused_but_never_an_error(payload: bytes) -> None:
    tag = to_notification(Manifest())
    manifest = from_notification(tag + payload)
    store = StateStore(SMALL, blocks=4, slots=2)
    if manifest is not None:
        with pytest.raises(ManifestMismatch):
            _verify(store, manifest)
