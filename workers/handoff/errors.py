"""Why a hand-off fails, each with the reason code that the router and the client will see."""

from __future__ import annotations

from protos.tandem.v1.common_pb2 import ReasonCode


class HandoffError(Exception):
    """A hand-off that cannot go on; `reason` is what the router is told."""

    reason: ReasonCode.ValueType = ReasonCode.REASON_INTERNAL


class TransferFailed(HandoffError):
    """NIXL could not move the bytes."""

    reason = ReasonCode.REASON_TRANSFER_FAILED


class ManifestMismatch(HandoffError):
    """The two workers do not agree on what is moved."""

    reason = ReasonCode.REASON_MANIFEST_MISMATCH

    def __init__(self, field: str, expected: object, found: object) -> None:
        super().__init__(f"{field}: expected {expected}, found {found}")
        self.field = field
        self.expected = expected
        self.found = found


class ChecksumMismatch(ManifestMismatch):
    """The bytes in place are not the bytes that were sent."""

    reason = ReasonCode.REASON_CHECKSUM_MISMATCH
