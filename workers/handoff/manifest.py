"""The manifest: what was written, so that decode can refuse anything else.

Exists because a wrong byte of state gives a fluent wrong answer. Both sides describe state by the
same regions and hash the same bytes: whole blocks (the sender zeroes the unused tail of the
last one) and whole slots.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import xxhash
from google.protobuf.message import DecodeError

from protos.tandem.v1.handoff_pb2 import (
    HandoffTicket,
    Layout,
    Manifest,
    ManifestRegion,
    StateKind,
)
from workers.handoff.errors import ChecksumMismatch, ManifestMismatch
from workers.state.layout import Region
from workers.state.store import StateStore

# Notifications of other kinds can be told apart, and random bytes are not parsed at all.
_TAG = b"tandem.manifest.1\n"


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """Which weights made the state; state of other weights means something else."""

    fingerprint: str
    epoch: int


def make_manifest(
    store: StateStore,
    regions: Sequence[Region],
    ticket: HandoffTicket,
    model: ModelVersion,
    tokens: int,
    first_token_id: int,
) -> Manifest:
    """Describe and hash `regions` of `store`, about to be written where `ticket` says."""
    return Manifest(
        reservation=ticket.reservation,
        model_fingerprint=model.fingerprint,
        epoch=model.epoch,
        source_layout=store.layout.to_proto(),
        tokens=tokens,
        first_token_id=first_token_id,
        regions=[
            ManifestRegion(
                kind=region.kind, bytes=region.length_bytes, checksum=checksum(store, region)
            )
            for region in regions
        ],
    )


def to_notification(manifest: Manifest) -> bytes:
    """The manifest as NIXL carries it."""
    return _TAG + manifest.SerializeToString()


def from_notification(payload: bytes) -> Manifest | None:
    """The manifest in a notification; None when it holds something else."""
    if not payload.startswith(_TAG):
        return None
    try:
        return Manifest.FromString(payload[len(_TAG) :])
    except DecodeError:
        return None


def verify_manifest(
    manifest: Manifest, model: ModelVersion, layout: Layout, tokens: int, regions: Sequence[Region]
) -> None:
    """Compare what a manifest says with what was reserved.

    Raises:
        ManifestMismatch: the first field that differs.
    """
    verify_agreement(
        manifest.model_fingerprint, manifest.epoch, manifest.source_layout, model, layout
    )
    _compare("tokens", tokens, manifest.tokens)
    _compare(
        "regions",
        _in_words((region.kind, region.length_bytes) for region in regions),
        _in_words((region.kind, region.bytes) for region in manifest.regions),
    )


def verify_agreement(
    fingerprint: str, epoch: int, found: Layout, model: ModelVersion, layout: Layout
) -> None:
    """Compare another worker's model and layout with one's own.

    Raises:
        ManifestMismatch: the first field that differs.
    """
    _compare("model_fingerprint", model.fingerprint, fingerprint)
    _compare("epoch", model.epoch, epoch)
    _compare("layout.kvp", layout.kvp, found.kvp)
    _compare("layout.tpa", layout.tpa, found.tpa)
    _compare("layout.block_tokens", layout.block_tokens, found.block_tokens)


def verify_checksums(manifest: Manifest, store: StateStore, regions: Sequence[Region]) -> None:
    """Hash what arrived and compare; the manifest was verified before.

    Raises:
        ChecksumMismatch: the first kind whose bytes differ.
    """
    for region, described in zip(regions, manifest.regions, strict=True):
        found = checksum(store, region)
        if found != described.checksum:
            name = f"checksum of {StateKind.Name(region.kind)}"
            raise ChecksumMismatch(name, f"{described.checksum:016x}", f"{found:016x}")


def checksum(store: StateStore, region: Region) -> int:
    """XXH3-64 over the bytes of the region in order."""
    hasher = xxhash.xxh3_64()
    for run in store.contents(region):
        hasher.update(run)
    return hasher.intdigest()


def kind_name(kind: StateKind.ValueType) -> str:
    """The name of a kind that another worker sent; its number when we do not know it."""
    return StateKind.Name(kind) if kind in StateKind.values() else f"kind {kind}"


def _compare(field: str, expected: object, found: object) -> None:
    if expected != found:
        raise ManifestMismatch(field, expected, found)


def _in_words(regions: Iterable[tuple[StateKind.ValueType, int]]) -> str:
    described = (f"{kind_name(kind)} {length} bytes" for kind, length in regions)
    return ", ".join(described) or "none"
