"""The source's side of hand-offs, on rank 0: when each part of a state may leave, and how it ended.

Exists so that the engine says how far it has read and later hears how it went, whatever the number
of ranks at either end. Pure: commands go out, events and times come in. Nothing is written before
decode has granted it, and nothing after the lease of the ticket has run out.

The blocks and the slot are read by the network until Sent or SendFailed: they must not be freed or
written before.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from protos.tandem.v1.common_pb2 import ReasonCode
from protos.tandem.v1.handoff_pb2 import Claim, HandoffControl, HandoffTicket, WriterDone
from protos.tandem.v1.inference_pb2 import HandoffReport
from workers.handoff.errors import ManifestMismatch
from workers.handoff.manifest import ModelVersion, compare, to_notification
from workers.handoff.messages import (
    Abort,
    Command,
    Finish,
    Open,
    Push,
    Pushed,
    Tell,
    WriteEnded,
    WriteFailed,
    Written,
)
from workers.handoff.ticket import Destination, read_ticket
from workers.state.layout import StateLayout

logger = logging.getLogger(__name__)

# A request that ended like this needs no decode worker; the router tells it so itself.
_ENDED_WELL = (
    ReasonCode.REASON_STOP_TOKEN,
    ReasonCode.REASON_STOP_STRING,
    ReasonCode.REASON_LENGTH,
)


@dataclass(frozen=True, slots=True)
class Sent:
    """Every byte was written by every rank; the blocks and the slot may be freed.

    `report.handoff_ms` ends when the last write was seen to be done; the time that decode takes to
    check the last part is not in it.
    """

    handle: int
    report: HandoffReport


@dataclass(frozen=True, slots=True)
class SendFailed:
    """The hand-off is over and reads no more; the blocks and the slot may be freed."""

    handle: int
    reason: ReasonCode.ValueType
    detail: str


@dataclass(slots=True)
class _Outgoing:
    handle: int
    transfer: int
    ticket: HandoffTicket
    destination: Destination
    blocks: tuple[int, ...]
    slot: int
    waits_since_s: float  # for the grant, later for the last byte
    expires_s: float
    align_tokens: int
    granted: bool = False
    ready_tokens: int = 0  # of these the KV is final in memory
    pushed_tokens: int = 0
    rank_tokens: dict[int, int] = field(default_factory=dict)  # what each rank has pushed
    finish: Finish | None = None  # set: the whole state is final
    finished: bool = False
    written: list[Written] = field(default_factory=list)
    ended_ranks: set[int] = field(default_factory=set)
    failure: SendFailed | None = None  # set: waiting for all ranks to let go

    @property
    def peer(self) -> str:
        """The agent of decode's rank 0."""
        return self.ticket.ranks[0].agent_name


class HandoffSender:
    """All hand-offs that leave this group. Called by the engine loop only."""

    def __init__(
        self,
        post: Callable[[Command], None],
        layout: StateLayout,
        model: ModelVersion,
        metadata: bytes,
        *,
        timeout_s: float,
        rng: random.Random,
    ) -> None:
        """`metadata` is that of rank 0's agent, for decode to answer to."""
        self._post = post
        self._layout = layout
        self._model = model
        self._metadata = metadata
        self._timeout_s = timeout_s
        self._rng = rng
        self._outgoing: dict[int, _Outgoing] = {}  # by transfer
        self._transfers: dict[int, int] = {}  # by handle
        self._ended: list[Sent | SendFailed] = []

    @property
    def busy(self) -> bool:
        """Whether anything is on its way."""
        return bool(self._outgoing or self._ended)

    def open(
        self,
        handle: int,
        ticket: HandoffTicket,
        blocks: Sequence[int],
        slot: int,
        tokens: int,
        now_s: float,
    ) -> None:
        """Ask decode for leave to write a state of `tokens` tokens.

        The outcome comes from `take`, always, and at any time from now on.

        Raises:
            ValueError: the handle is being sent already, or the blocks do not cover the tokens.
        """
        if handle in self._transfers:
            raise ValueError(f"handle {handle} is being sent already")
        if len(blocks) < self._layout.blocks_for(tokens):
            raise ValueError(f"blocks: {len(blocks)} do not hold {tokens} tokens")
        try:
            destination = read_ticket(ticket, self._model, self._layout)
            compare("tokens", tokens, destination.tokens)
        except ManifestMismatch as error:
            self._ended.append(SendFailed(handle, error.reason, str(error)))
            return
        transfer = self._rng.getrandbits(63) | 1 << 63
        outgoing = _Outgoing(
            handle,
            transfer,
            ticket,
            destination,
            tuple(blocks),
            slot,
            now_s,
            now_s + destination.lease_s,
            math.lcm(self._layout.block_span_tokens, destination.layout.block_span_tokens),
        )
        self._outgoing[transfer] = outgoing
        self._transfers[handle] = transfer
        claim = HandoffControl(claim=Claim(agent_metadata=self._metadata))
        self._tell(outgoing, claim, ticket.ranks[0].agent_metadata)

    def granted(self, handle: int) -> bool:
        """Whether decode has given leave to write."""
        outgoing = self._find(handle)
        return outgoing is not None and outgoing.granted

    def caught_up(self, handle: int) -> bool:
        """Whether all has been written that may leave before the rest."""
        outgoing = self._find(handle)
        if outgoing is None or not outgoing.granted:
            return False
        pushed, ranks = outgoing.pushed_tokens, outgoing.rank_tokens
        return not pushed or all(ranks.get(rank, 0) >= pushed for rank in self._layout.ranks)

    def advance(self, handle: int, tokens: int) -> None:
        """Say that the KV of the first `tokens` tokens is final in memory: it may leave while the
        rest is computed."""
        outgoing = self._find(handle)
        if outgoing is None:
            return
        if self._layout.geometry.draft_hidden_size:
            tokens -= 1  # the draft KV of a token needs the one after it
        outgoing.ready_tokens = max(outgoing.ready_tokens, tokens)
        self._flush(outgoing)

    def finish(
        self,
        handle: int,
        first_token_id: int,
        now_s: float,
        tokens: int | None = None,
        made: Sequence[int] = (),
    ) -> None:
        """Say that the whole state is final in memory, and which token is to be fed next.

        With `tokens` it has so many, and not all that the ticket has room for; `made` are those of
        the answer that decode does not know of.
        """
        outgoing = self._find(handle)
        if outgoing is None:
            return
        if tokens is None:
            tokens = outgoing.destination.tokens
        outgoing.finish = Finish(outgoing.transfer, 0, tokens, first_token_id, tuple(made))
        outgoing.waits_since_s = now_s
        self._flush(outgoing)

    def renew(self, handle: int, now_s: float) -> None:
        """The request is still wanted: its lease begins anew."""
        outgoing = self._find(handle)
        if outgoing is not None:
            outgoing.expires_s = now_s + outgoing.destination.lease_s

    def abort(self, handle: int, reason: ReasonCode.ValueType, detail: str) -> None:
        """Stop sending; SendFailed follows when NIXL has let go. Unknown handles are over."""
        outgoing = self._find(handle)
        if outgoing is not None:
            self._fail(outgoing, reason, detail)

    def heard(self, message: HandoffControl, agent_name: str) -> None:
        """Take in an answer of decode."""
        outgoing = self._outgoing.get(message.transfer)
        if outgoing is None:
            if message.WhichOneof("about") in ("grant", "revocation"):
                done = HandoffControl(
                    reservation=message.reservation,
                    transfer=message.transfer,
                    writer_done=WriterDone(),
                )
                self._post(Tell(agent_name, b"", to_notification(done)))
            return
        if agent_name != outgoing.peer or message.reservation != outgoing.destination.reservation:
            logger.warning("dropped an answer from %s to another's claim", agent_name)
            return
        match message.WhichOneof("about"):
            case "grant" if outgoing.failure is None and not outgoing.granted:
                outgoing.granted = True
                self._post(
                    Open(
                        outgoing.transfer,
                        outgoing.ticket.SerializeToString(),
                        outgoing.blocks,
                        outgoing.slot,
                    )
                )
                self._flush(outgoing)
            case "denial":
                denial = message.denial
                self._fail(outgoing, denial.reason, denial.detail)
            case "revocation":
                reason = message.revocation.reason
                self._fail(outgoing, reason, "decode does not want the state any more")

    def unreachable(self, agent_name: str, detail: str) -> None:
        """Decode's rank 0 could not be told something."""
        for outgoing in list(self._outgoing.values()):
            if outgoing.peer == agent_name and not outgoing.granted:
                self._fail(outgoing, ReasonCode.REASON_TRANSFER_FAILED, detail)

    def rank_said(self, event: Written | Pushed | WriteFailed | WriteEnded) -> None:
        """Take in how one rank fares."""
        outgoing = self._outgoing.get(event.transfer)
        if outgoing is None:
            return
        match event:
            case Written():
                outgoing.written.append(event)
                outgoing.ended_ranks.add(event.rank)
            case Pushed():
                outgoing.rank_tokens[event.rank] = event.last_token
            case WriteEnded():
                outgoing.ended_ranks.add(event.rank)
            case WriteFailed():
                self._fail(outgoing, event.reason, event.detail)

    def take(self, now_s: float) -> list[Sent | SendFailed]:
        """Hand-offs that ended since the last call; gives up those whose time is over."""
        for outgoing in list(self._outgoing.values()):
            self._check_time(outgoing, now_s)
            everybody = len(outgoing.ended_ranks) == self._layout.parallel.size
            if outgoing.failure is not None and (everybody or not outgoing.granted):
                self._end(outgoing, outgoing.failure)
                reason, detail = outgoing.failure.reason, outgoing.failure.detail
                if reason not in _ENDED_WELL:
                    done = WriterDone(reason=reason, detail=detail)
                    self._tell(outgoing, HandoffControl(writer_done=done))
            elif everybody and outgoing.failure is None:
                report = _report(outgoing.written)
                report.handoff_ms = (now_s - outgoing.waits_since_s) * 1000.0
                self._end(outgoing, Sent(outgoing.handle, report))
        ended, self._ended = self._ended, []
        return ended

    def _flush(self, outgoing: _Outgoing) -> None:
        """Let leave what may."""
        if not outgoing.granted or outgoing.failure is not None or outgoing.finished:
            return
        pushed = outgoing.pushed_tokens
        if outgoing.finish is not None:
            outgoing.finished = True
            self._post(replace(outgoing.finish, first_token=pushed))
            return
        # Whole blocks at both ends travel in few descriptors; the others wait.
        ready = outgoing.ready_tokens // outgoing.align_tokens * outgoing.align_tokens
        if ready > pushed:
            outgoing.pushed_tokens = ready
            self._post(Push(outgoing.transfer, pushed, ready))

    def _check_time(self, outgoing: _Outgoing, now_s: float) -> None:
        waits = not outgoing.granted or outgoing.finished
        if waits and now_s - outgoing.waits_since_s >= self._timeout_s:
            doing = "writing to" if outgoing.granted else "asking"
            detail = f"{doing} {outgoing.peer}: not done after {self._timeout_s} s"
            self._fail(outgoing, ReasonCode.REASON_TRANSFER_FAILED, detail)
        elif now_s >= outgoing.expires_s:
            detail = f"not renewed for {outgoing.destination.lease_s} s"
            self._fail(outgoing, ReasonCode.REASON_LEASE_EXPIRED, detail)

    def _fail(self, outgoing: _Outgoing, reason: ReasonCode.ValueType, detail: str) -> None:
        if outgoing.failure is None:
            outgoing.failure = SendFailed(outgoing.handle, reason, detail)
            if outgoing.granted:
                self._post(Abort(outgoing.transfer))

    def _end(self, outgoing: _Outgoing, outcome: Sent | SendFailed) -> None:
        del self._outgoing[outgoing.transfer]
        del self._transfers[outgoing.handle]
        self._ended.append(outcome)

    def _find(self, handle: int) -> _Outgoing | None:
        transfer = self._transfers.get(handle)
        return None if transfer is None else self._outgoing[transfer]

    def _tell(self, outgoing: _Outgoing, message: HandoffControl, metadata: bytes = b"") -> None:
        message.reservation = outgoing.destination.reservation
        message.transfer = outgoing.transfer
        self._post(Tell(outgoing.peer, metadata, to_notification(message)))


def _report(written: Sequence[Written]) -> HandoffReport:
    longest = max(written, key=lambda rank: rank.transfer_ms)
    return HandoffReport(
        kv_bytes=sum(rank.kv_bytes for rank in written),
        mamba_bytes=sum(rank.mamba_bytes for rank in written),
        mtp_bytes=sum(rank.mtp_bytes for rank in written),
        descriptors=sum(rank.descriptors for rank in written),
        transfer_ms=longest.transfer_ms,
        hidden_ms=longest.hidden_ms,
    )
