"""The target's side of hand-offs, on rank 0: offer memory, and accept state only when all is right.

Exists so that nothing but verified state reaches the engine, and that memory which somebody may
still write into is not given to the next request. Pure: commands go out, events and times come in.

A writer claims a reservation before its first write. If the reservation ends before anybody has
claimed it, its memory is free at once: later claims are denied. If a writer has claimed it, the
memory is quarantined until the writer says that it is done, or cannot be reached any more, or its
lease has run out and the time that it may take to stop has passed. Reservations are numbered at
random and never twice; what comes under the number of an ended one is dropped.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from protos.tandem.v1.common_pb2 import ReasonCode
from protos.tandem.v1.handoff_pb2 import (
    Denial,
    Grant,
    HandoffControl,
    HandoffTicket,
    Layout,
    RankTarget,
    Revocation,
)
from workers.handoff.manifest import ModelVersion, to_notification
from workers.handoff.messages import (
    Command,
    Expect,
    Expecting,
    Forget,
    PairArrived,
    PairRefused,
    Tell,
)
from workers.state.layout import StateLayout
from workers.state.reshard import meeting_pairs

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Arrival:
    """The state of `tokens` tokens is in place on every rank and was checked.

    `made` are those of the answer since the reservation, where more could be made.
    """

    handle: int
    tokens: int
    first_token_id: int
    made: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """The reservation ended without usable state.

    Its memory may be freed, unless it is `quarantined`: then Released follows.
    """

    handle: int
    reason: ReasonCode.ValueType
    detail: str
    quarantined: bool = False


@dataclass(frozen=True, slots=True)
class Released:
    """Nobody writes into the memory of an ended reservation any more: it may be freed."""

    handle: int


@dataclass(slots=True)
class _Reservation:
    number: int
    handle: int
    tokens: int
    expires_s: float
    ready_ranks: set[int] = field(default_factory=set)
    writer: str = ""  # agent of the source's rank 0, when it was claimed
    transfer: int = 0
    granted: bool = False
    pairs: set[tuple[int, int]] = field(default_factory=set)  # that have arrived
    awaited: set[tuple[int, int]] | None = None  # known with the source's layout
    first_token_id: int = 0
    made: tuple[int, ...] = ()


@dataclass(slots=True)
class _Quarantine:
    handle: int
    writer: str
    transfer: int
    until_s: float
    ask_s: float  # when the writer is asked again
    reason: ReasonCode.ValueType


class HandoffReceiver:
    """All hand-offs that are on their way to this group. Called by the engine loop only."""

    def __init__(
        self,
        post: Callable[[Command], None],
        layout: StateLayout,
        model: ModelVersion,
        targets: Sequence[RankTarget],
        *,
        worker_id: str,
        lease_s: float,
        stop_s: float,
        ask_every_s: float,
        rng: random.Random,
    ) -> None:
        """`stop_s` bounds how long a writer writes after its lease; `targets` is by rank.

        A writer whose reservation ended is asked every `ask_every_s` whether it is done.
        """
        self._post = post
        self._layout = layout
        self._model = model
        self._targets = tuple(targets)
        self._worker_id = worker_id
        self._lease_s = lease_s
        self._stop_s = stop_s
        self._ask_every_s = ask_every_s
        self._rng = rng
        self._reservations: dict[int, _Reservation] = {}  # by number
        self._numbers: dict[int, int] = {}  # by handle
        self._quarantined: dict[int, _Quarantine] = {}  # by number
        self._ended: list[Arrival | Refusal | Released] = []

    @property
    def busy(self) -> bool:
        """Whether anything may arrive or is to be told."""
        return bool(self._reservations or self._quarantined or self._ended)

    def reserve(
        self,
        handle: int,
        blocks: Sequence[int],
        slot: int,
        tokens: int,
        now_s: float,
        growth_tokens: int = 0,
    ) -> HandoffTicket:
        """Offer the blocks that `tokens` tokens reach, and the slot, to another worker.

        The state may have up to `growth_tokens` fewer: more are made until it leaves.

        Raises:
            ValueError: the handle has a reservation, or the blocks do not cover the tokens.
        """
        if handle in self._numbers:
            raise ValueError(f"handle {handle} already has a reservation")
        needed = self._layout.blocks_for(tokens)
        if not 0 <= growth_tokens < tokens or len(blocks) < needed:
            raise ValueError(f"blocks: {len(blocks)} do not hold {tokens} tokens")
        number = self._unused_number()
        offered = tuple(blocks[:needed])
        self._reservations[number] = _Reservation(number, handle, tokens, now_s + self._lease_s)
        self._numbers[handle] = number
        self._post(Expect(number, offered, slot, tokens, growth_tokens))
        return HandoffTicket(
            reservation=number,
            worker_id=self._worker_id,
            model_fingerprint=self._model.fingerprint,
            epoch=self._model.epoch,
            layout=self._layout.to_proto(),
            ranks=self._targets,
            blocks=offered,
            slot=slot,
            tokens=tokens,
            lease_ms=int(self._lease_s * 1000.0),
            growth_tokens=growth_tokens,
        )

    @property
    def lease_s(self) -> float:
        """How long a reservation waits for its state unless it is renewed."""
        return self._lease_s

    def renew(self, handle: int, now_s: float) -> None:
        """The request is still wanted: its lease begins anew. Unknown handles have ended."""
        number = self._numbers.get(handle)
        if number is not None:
            self._reservations[number].expires_s = now_s + self._lease_s

    def spare(self, now_s: float) -> None:
        """Nothing could be heard or said here for a while: let every lease last a third longer, the
        time in which a router that was told so late renews it."""
        for reservation in self._reservations.values():
            reservation.expires_s = max(reservation.expires_s, now_s + self._lease_s / 3.0)

    def cancel(self, handle: int, reason: ReasonCode.ValueType, now_s: float) -> bool:
        """End a reservation; True if its memory stays quarantined until Released."""
        number = self._numbers.get(handle)
        if number is None:
            return False
        return self._drop(self._reservations[number], reason, now_s)

    def heard(self, message: HandoffControl, agent_name: str, now_s: float) -> None:
        """Take in what a writer says."""
        match message.WhichOneof("about"):
            case "claim":
                self._claimed(message, agent_name, now_s)
            case "writer_done":
                self._writer_done(message, agent_name)

    def unreachable(self, agent_name: str) -> None:
        """An agent could not be told something: it writes no more."""
        for number, quarantine in list(self._quarantined.items()):
            if quarantine.writer == agent_name:
                self._release(number)

    def rank_said(self, event: Expecting | PairArrived | PairRefused, now_s: float) -> None:
        """Take in what one rank found."""
        reservation = self._reservations.get(event.reservation)
        if reservation is None:
            return
        match event:
            case Expecting():
                reservation.ready_ranks.add(event.rank)
                self._grant(reservation)
            case PairRefused():
                self._refuse(reservation, event.reason, event.detail, now_s)
            case PairArrived():
                self._arrived(reservation, event, now_s)

    def take(self, now_s: float) -> list[Arrival | Refusal | Released]:
        """What ended since the last call; gives up reservations whose lease is over."""
        for reservation in list(self._reservations.values()):
            if now_s >= reservation.expires_s:
                detail = f"no state came within {self._lease_s} s"
                self._refuse(reservation, ReasonCode.REASON_LEASE_EXPIRED, detail, now_s)
        for number, quarantine in list(self._quarantined.items()):
            if now_s >= quarantine.until_s:
                logger.warning(
                    "%s did not say that it is done; its lease is over", quarantine.writer
                )
                self._release(number)
            elif now_s >= quarantine.ask_s:
                quarantine.ask_s = now_s + self._ask_every_s
                self._revoke(number, quarantine)
        ended, self._ended = self._ended, []
        return ended

    def _claimed(self, message: HandoffControl, agent_name: str, now_s: float) -> None:
        reservation = self._reservations.get(message.reservation)
        if reservation is None or reservation.writer:
            denial = Denial(
                reason=ReasonCode.REASON_LEASE_EXPIRED,
                detail=f"reservation {message.reservation} is unknown, used or over",
            )
            self._answer(message, agent_name, HandoffControl(denial=denial))
            return
        reservation.writer, reservation.transfer = agent_name, message.transfer
        reservation.expires_s = now_s + self._lease_s
        # Connects, so that later messages need no metadata.
        self._post(Tell(agent_name, message.claim.agent_metadata, b""))
        self._grant(reservation)

    def _grant(self, reservation: _Reservation) -> None:
        everybody = len(reservation.ready_ranks) == self._layout.parallel.size
        if reservation.writer and everybody and not reservation.granted:
            reservation.granted = True
            message = HandoffControl(
                reservation=reservation.number, transfer=reservation.transfer, grant=Grant()
            )
            self._post(Tell(reservation.writer, b"", to_notification(message)))

    def _arrived(self, reservation: _Reservation, event: PairArrived, now_s: float) -> None:
        if event.transfer != reservation.transfer:
            detail = f"state of transfer {event.transfer}, which has not claimed the reservation"
            self._refuse(reservation, ReasonCode.REASON_MANIFEST_MISMATCH, detail, now_s)
            return
        if reservation.awaited is None:
            source = self._layout.of_peer(Layout.FromString(event.layout))
            reservation.awaited = meeting_pairs(source, self._layout, reservation.tokens)
            reservation.first_token_id = event.first_token_id
            reservation.made = event.made
        if event.first_token_id != reservation.first_token_id:
            detail = f"first_token_id: expected {reservation.first_token_id}, found "
            detail += str(event.first_token_id)
            self._refuse(reservation, ReasonCode.REASON_MANIFEST_MISMATCH, detail, now_s)
            return
        if event.made != reservation.made:
            detail = f"made_token_ids: expected {reservation.made}, found {event.made}"
            self._refuse(reservation, ReasonCode.REASON_MANIFEST_MISMATCH, detail, now_s)
            return
        reservation.pairs.add((event.source_rank, event.rank))
        if reservation.pairs >= reservation.awaited:
            self._remove(reservation)
            arrival = Arrival(reservation.handle, event.tokens, event.first_token_id, event.made)
            self._ended.append(arrival)

    def _writer_done(self, message: HandoffControl, agent_name: str) -> None:
        quarantine = self._quarantined.get(message.reservation)
        if quarantine is not None and self._is(quarantine, message, agent_name):
            self._release(message.reservation)
            return
        reservation = self._reservations.get(message.reservation)
        if reservation is not None and self._is(reservation, message, agent_name):
            self._remove(reservation)
            done = message.writer_done
            reason = done.reason or ReasonCode.REASON_TRANSFER_FAILED
            self._ended.append(Refusal(reservation.handle, reason, done.detail))

    def _refuse(
        self,
        reservation: _Reservation,
        reason: ReasonCode.ValueType,
        detail: str,
        now_s: float,
    ) -> None:
        quarantined = self._drop(reservation, reason, now_s)
        self._ended.append(Refusal(reservation.handle, reason, detail, quarantined))

    def _drop(self, reservation: _Reservation, reason: ReasonCode.ValueType, now_s: float) -> bool:
        """End a reservation; whether a writer has to be waited for."""
        self._remove(reservation)
        if not reservation.writer:
            return False
        quarantine = _Quarantine(
            reservation.handle,
            reservation.writer,
            reservation.transfer,
            now_s + self._lease_s + self._stop_s,
            now_s + self._ask_every_s,
            reason,
        )
        self._quarantined[reservation.number] = quarantine
        self._revoke(reservation.number, quarantine)
        return True

    def _remove(self, reservation: _Reservation) -> None:
        del self._reservations[reservation.number]
        del self._numbers[reservation.handle]
        self._post(Forget(reservation.number))

    def _release(self, number: int) -> None:
        self._ended.append(Released(self._quarantined.pop(number).handle))

    def _revoke(self, number: int, quarantine: _Quarantine) -> None:
        message = HandoffControl(
            reservation=number,
            transfer=quarantine.transfer,
            revocation=Revocation(reason=quarantine.reason),
        )
        self._post(Tell(quarantine.writer, b"", to_notification(message)))

    def _answer(self, claim: HandoffControl, agent_name: str, message: HandoffControl) -> None:
        message.reservation, message.transfer = claim.reservation, claim.transfer
        metadata = claim.claim.agent_metadata
        self._post(Tell(agent_name, metadata, to_notification(message)))

    @staticmethod
    def _is(ours: _Reservation | _Quarantine, message: HandoffControl, agent_name: str) -> bool:
        return ours.writer == agent_name and ours.transfer == message.transfer

    def _unused_number(self) -> int:
        # Zero is what a field left out would read as.
        while True:
            number = self._rng.getrandbits(64)
            if number and number not in self._reservations and number not in self._quarantined:
                return number
