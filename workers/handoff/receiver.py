"""The decode side of a hand-off: offer memory, and accept state only when it is the right one.

Exists so that nothing but verified state reaches the engine. A notification that names no live
reservation, or that is no manifest, is dropped with a log line and harms nobody.

Not covered yet: a write that was posted before its reservation was cancelled or ran out can still
land afterwards, in blocks that another request may then hold. NIXL has no call to take a ticket
back, so until blocks are quarantined after a cancelled or expired reservation, `lease_s` must be
longer than a prompt's wait, prefill and transfer, and the prefill side must be cancelled too.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from protos.tandem.v1.common_pb2 import ReasonCode
from protos.tandem.v1.handoff_pb2 import HandoffTicket
from workers.handoff.agent import NixlAgent, Notification
from workers.handoff.errors import ManifestMismatch
from workers.handoff.manifest import (
    ModelVersion,
    from_notification,
    verify_checksums,
    verify_manifest,
)
from workers.handoff.ticket import make_ticket
from workers.state.layout import Region
from workers.state.store import StateStore

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Arrival:
    """The state of `tokens` prompt tokens is in place and was checked."""

    handle: int
    tokens: int
    first_token_id: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """The reservation ended without usable state; its memory may be freed."""

    handle: int
    reason: ReasonCode.ValueType
    detail: str


@dataclass(frozen=True, slots=True)
class _Reservation:
    number: int
    handle: int
    tokens: int
    regions: tuple[Region, ...]
    model: ModelVersion
    expires_s: float


class HandoffReceiver:
    """All hand-offs that are on their way to this worker. Called by the engine loop only."""

    def __init__(
        self,
        agent: NixlAgent,
        store: StateStore,
        model: ModelVersion,
        *,
        worker_id: str,
        lease_s: float,
        rng: random.Random,
    ) -> None:
        self._agent = agent
        self._store = store
        self._model = model
        self._worker_id = worker_id
        self._lease_s = lease_s
        self._rng = rng
        self._reservations: dict[int, _Reservation] = {}  # by number
        self._numbers: dict[int, int] = {}  # by handle

    def reserve(
        self, handle: int, blocks: Sequence[int], slot: int, prompt_tokens: int, now_s: float
    ) -> HandoffTicket:
        """Offer the blocks that `prompt_tokens` tokens reach, and the slot, to a prefill worker.

        Raises:
            ValueError: the handle has a reservation, or the blocks do not cover the tokens.
        """
        if handle in self._numbers:
            raise ValueError(f"handle {handle} already has a reservation")
        regions = self._store.layout.regions(blocks, slot, prompt_tokens)
        number = self._unused_number()
        ticket = make_ticket(
            number, self._worker_id, self._model, self._agent, self._store, regions
        )
        self._reservations[number] = _Reservation(
            number, handle, prompt_tokens, regions, self._model, now_s + self._lease_s
        )
        self._numbers[handle] = number
        return ticket

    def poll(self, now_s: float) -> list[Arrival | Refusal]:
        """Reservations that ended since the last call, well or not."""
        ended: list[Arrival | Refusal] = []
        for notification in self._agent.notifications():
            outcome = self._accept(notification)
            if outcome is not None:
                ended.append(outcome)
        # Afterwards, so that what has arrived counts, however late it was looked at.
        for reservation in list(self._reservations.values()):
            if now_s >= reservation.expires_s:
                self._drop(reservation)
                detail = f"no state came within {self._lease_s} s"
                ended.append(Refusal(reservation.handle, ReasonCode.REASON_LEASE_EXPIRED, detail))
        return ended

    @property
    def lease_s(self) -> float:
        """How long a reservation waits for its state unless it is renewed."""
        return self._lease_s

    def renew(self, handle: int, now_s: float) -> None:
        """Begin the lease of a reservation anew; nothing happens when it has ended."""
        number = self._numbers.get(handle)
        if number is not None:
            self._reservations[number] = replace(
                self._reservations[number], expires_s=now_s + self._lease_s
            )

    def cancel(self, handle: int) -> None:
        """Forget a reservation; see the module's note on late writes."""
        number = self._numbers.get(handle)
        if number is not None:
            self._drop(self._reservations[number])

    def close(self) -> None:
        """Forget every reservation; the agent is closed by whoever made it."""
        self._reservations.clear()
        self._numbers.clear()

    def _accept(self, notification: Notification) -> Arrival | Refusal | None:
        manifest = from_notification(notification.payload)
        if manifest is None:
            logger.warning(
                "dropped a notification of %d bytes from %s: it is no manifest",
                len(notification.payload),
                notification.sender,
            )
            return None
        reservation = self._reservations.get(manifest.reservation)
        if reservation is None:
            logger.warning(
                "dropped a manifest from %s: reservation %d is unknown, used or over",
                notification.sender,
                manifest.reservation,
            )
            return None
        self._drop(reservation)
        regions = reservation.regions
        try:
            verify_manifest(
                manifest,
                reservation.model,
                self._store.layout.to_proto(),
                reservation.tokens,
                regions,
            )
            verify_checksums(manifest, self._store, regions)
        except ManifestMismatch as error:
            detail = f"manifest from {notification.sender}: {error}"
            return Refusal(reservation.handle, error.reason, detail)
        return Arrival(reservation.handle, manifest.tokens, manifest.first_token_id)

    def _drop(self, reservation: _Reservation) -> None:
        del self._reservations[reservation.number]
        del self._numbers[reservation.handle]

    def _unused_number(self) -> int:
        # Zero is what a field left out would read as.
        while True:
            number = self._rng.getrandbits(64)
            if number and number not in self._reservations:
                return number
