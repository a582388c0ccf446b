"""Manifests: what each write brought, so that decode can refuse anything else.

Exists because a wrong byte of state gives a fluent wrong answer. Both sides compute the copies
between a pair of ranks from the two layouts, and hash their own end of them in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass

import xxhash
from google.protobuf.message import DecodeError

from protos.tandem.v1 import handoff_pb2
from protos.tandem.v1.handoff_pb2 import HandoffControl, Layout, Manifest, ManifestRegion, StateKind
from workers.handoff.errors import ChecksumMismatch, ManifestMismatch
from workers.state.copies import LENGTH, Copies
from workers.state.layout import StateLayout
from workers.state.reshard import Extent, PairCopies
from workers.state.store import StateStore

# Notifications of other kinds can be told apart, and random bytes are not parsed at all.
_MANIFEST_TAG = b"tandem.manifest.3\n"
_CONTROL_TAG = b"tandem.control.1\n"
# A notification is a message of the network's control path: far more than any of ours has.
_MOST_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """Which weights made the state; state of other weights means something else."""

    fingerprint: str
    epoch: int


def describe(store: StateStore, copies: PairCopies, end: int) -> list[ManifestRegion]:
    """Size and checksum of each kind at one end of the copies (SOURCE or TARGET)."""
    return [
        ManifestRegion(
            kind=kind,
            bytes=int(rows[:, LENGTH].sum()),
            checksum=_checksum(store, kind, rows, end),
        )
        for kind, rows in copies.items()
    ]


def to_notification(message: Manifest | HandoffControl) -> bytes:
    """A message as NIXL carries it."""
    tag = _MANIFEST_TAG if isinstance(message, Manifest) else _CONTROL_TAG
    return tag + message.SerializeToString()


def from_notification(payload: bytes) -> Manifest | HandoffControl | None:
    """The message in a notification; None when it holds something else."""
    if len(payload) > _MOST_BYTES:
        return None
    try:
        if payload.startswith(_MANIFEST_TAG):
            return Manifest.FromString(payload[len(_MANIFEST_TAG) :])
        if payload.startswith(_CONTROL_TAG):
            return HandoffControl.FromString(payload[len(_CONTROL_TAG) :])
    except DecodeError:
        return None
    return None


def extent_to_proto(extent: Extent) -> handoff_pb2.Extent:
    return handoff_pb2.Extent(
        first_token=extent.first_token,
        last_token=extent.last_token,
        first_layer=extent.first_layer,
        last_layer=extent.last_layer,
        hidden=extent.hidden,
    )


def extent_from_proto(message: handoff_pb2.Extent) -> Extent:
    return Extent(
        message.first_token,
        message.last_token,
        message.first_layer,
        message.last_layer,
        message.hidden,
    )


def verify_agreement(
    fingerprint: str, epoch: int, found: Layout, model: ModelVersion, mine: StateLayout
) -> StateLayout:
    """Compare another worker's model and kinds of state with one's own; returns its layout.

    Raises:
        ManifestMismatch: the first field that differs, or a layout that the model cannot have.
    """
    compare("model_fingerprint", model.fingerprint, fingerprint)
    compare("epoch", model.epoch, epoch)
    layout = mine.to_proto()
    compare("layout.dtype", layout.dtype, found.dtype)
    compare("layout.drafts", layout.drafts, found.drafts)
    try:
        return mine.of_peer(found)
    except ValueError as error:
        raise ManifestMismatch("layout", "one that the model can have", str(error)) from error


def verify_regions(manifest: Manifest, store: StateStore, copies: PairCopies, end: int) -> None:
    """Compare the bytes in place with what a manifest says of them.

    Raises:
        ManifestMismatch: other kinds or sizes than the extent has.
        ChecksumMismatch: the first kind whose bytes differ.
    """
    compare(
        "regions",
        _in_words([(kind, int(rows[:, LENGTH].sum())) for kind, rows in copies.items()]),
        _in_words([(region.kind, region.bytes) for region in manifest.regions]),
    )
    for region, found in zip(manifest.regions, describe(store, copies, end), strict=True):
        if found.checksum != region.checksum:
            name = f"checksum of {StateKind.Name(region.kind)}"
            raise ChecksumMismatch(name, f"{region.checksum:016x}", f"{found.checksum:016x}")


def compare(field: str, expected: object, found: object) -> None:
    """Raise ManifestMismatch when the two differ."""
    if expected != found:
        raise ManifestMismatch(field, expected, found)


def kind_name(kind: StateKind.ValueType) -> str:
    """The name of a kind that another worker sent; its number when we do not know it."""
    return StateKind.Name(kind) if kind in StateKind.values() else f"kind {kind}"


def _checksum(store: StateStore, kind: StateKind.ValueType, copies: Copies, end: int) -> int:
    """XXH3-64 over one end of the copies, in their order."""
    hasher = xxhash.xxh3_64()
    for run in store.contents(kind, copies[:, end], copies[:, LENGTH]):
        hasher.update(run)
    return hasher.intdigest()


def _in_words(regions: list[tuple[StateKind.ValueType, int]]) -> str:
    return ", ".join(f"{kind_name(kind)} {length} bytes" for kind, length in regions) or "none"
