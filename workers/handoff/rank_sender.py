"""One rank's part of the hand-offs that leave its group: write to every rank of decode that is due.

Exists in each rank, because each has an agent and memory of its own. Parts are hashed and written
one by one as rank 0 says that they are complete, so that both pass while the prompt is still being
read. State is read by the network until Written or WriteEnded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from protos.tandem.v1.common_pb2 import ReasonCode
from protos.tandem.v1.handoff_pb2 import HandoffTicket, Manifest, StateKind
from workers.handoff.agent import NixlAgent, Transfer
from workers.handoff.errors import HandoffError, TransferFailed
from workers.handoff.manifest import ModelVersion, describe, extent_to_proto, to_notification
from workers.handoff.messages import (
    Abort,
    Event,
    Finish,
    Open,
    Push,
    Pushed,
    WriteEnded,
    WriteFailed,
    Written,
)
from workers.handoff.ticket import Destination, address, read_ticket
from workers.state.copies import LENGTH, SOURCE
from workers.state.layout import CONV, KV, SSM, StateLayout
from workers.state.reshard import Extent, PairCopies, Places, reshard_pair
from workers.state.store import StateStore

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Write:
    transfer: Transfer
    began_s: float


@dataclass(slots=True)
class _Outgoing:
    number: int
    destination: Destination
    here: Places
    parts: dict[int, int]  # by target rank that gets something: parts written so far
    writes: list[_Write] = field(default_factory=list)
    spans_s: list[tuple[float, float]] = field(default_factory=list)  # when something was written
    moved: dict[StateKind.ValueType, int] = field(default_factory=dict)
    descriptors: int = 0
    pushed_tokens: int = 0
    said_tokens: int = 0  # of these rank 0 knows that they have been written
    finish: Finish | None = None
    finished_s: float = 0.0  # when prefill ended
    stopped: bool = False  # nothing more is written: waiting for NIXL to let go


class RankSender:
    """All hand-offs that leave one rank. Owned by whoever drives the rank's agent."""

    def __init__(
        self,
        agent: NixlAgent,
        store: StateStore,
        layout: StateLayout,
        rank: int,
        model: ModelVersion,
        clock_s: Callable[[], float],
    ) -> None:
        self._agent = agent
        self._store = store
        self._layout = layout
        self._rank = rank
        self._model = model
        self._clock_s = clock_s
        self._outgoing: dict[int, _Outgoing] = {}

    @property
    def busy(self) -> bool:
        """Whether anything is open."""
        return bool(self._outgoing)

    def handle(self, command: Open | Push | Finish | Abort, posted_s: float) -> list[Event]:
        """Apply a command that rank 0 gave at `posted_s`; unknown transfers are over already."""
        if isinstance(command, Open):
            return self._open(command)
        outgoing = self._outgoing.get(command.transfer)
        if outgoing is None or outgoing.stopped:
            return []
        try:
            match command:
                case Push():
                    extent = Extent(command.first_token, command.last_token)
                    self._write(outgoing, extent, None)
                    outgoing.pushed_tokens = command.last_token
                case Finish():
                    outgoing.finish, outgoing.finished_s = command, posted_s
                    extent = Extent(
                        command.first_token,
                        command.tokens,
                        0,
                        self._layout.geometry.mamba_layers,
                        True,
                    )
                    self._write(outgoing, extent, command)
                case Abort():
                    outgoing.stopped = True
        except HandoffError as error:
            return [self._fail(outgoing, error)]
        return []

    def poll(self) -> list[Event]:
        """Drive every write; returns what ended since the last call."""
        events: list[Event] = []
        for outgoing in list(self._outgoing.values()):
            event = self._advance(outgoing)
            if event is not None:
                events.append(event)
            if isinstance(event, Written | WriteEnded):
                del self._outgoing[outgoing.number]
        return events

    def close(self) -> None:
        """Give up everything under way; the agent is closed by whoever made it."""
        for outgoing in self._outgoing.values():
            for write in outgoing.writes:
                write.transfer.release()
        self._outgoing.clear()

    def _open(self, command: Open) -> list[Event]:
        try:
            ticket = HandoffTicket.FromString(command.ticket)
            destination = read_ticket(ticket, self._model, self._layout)
        except HandoffError as error:
            return [
                WriteFailed(self._rank, command.transfer, error.reason, str(error)),
                WriteEnded(self._rank, command.transfer, error.reason, str(error)),
            ]
        here = Places(command.blocks, command.slot)
        whole = Extent.whole(self._layout, destination.tokens)
        targets = [
            rank
            for rank in destination.layout.ranks
            if reshard_pair(
                self._layout, destination.layout, self._rank, rank, whole, here, destination.places
            )
        ]
        self._outgoing[command.transfer] = _Outgoing(
            command.transfer, destination, here, dict.fromkeys(targets, 0)
        )
        return []

    def _write(self, outgoing: _Outgoing, extent: Extent, finish: Finish | None) -> None:
        """Hash and post a part to every rank of decode; the last one also where it is empty."""
        destination = outgoing.destination
        self._store.wait_written()
        for rank in outgoing.parts:
            copies = reshard_pair(
                self._layout,
                destination.layout,
                self._rank,
                rank,
                extent,
                outgoing.here,
                destination.places,
            )
            if copies or finish is not None:
                self._write_pair(outgoing, rank, extent, copies, finish)

    def _write_pair(
        self,
        outgoing: _Outgoing,
        rank: int,
        extent: Extent,
        copies: PairCopies,
        finish: Finish | None,
    ) -> None:
        remote = outgoing.destination.remote(rank)
        manifest = Manifest(
            reservation=outgoing.destination.reservation,
            transfer=outgoing.number,
            model_fingerprint=self._model.fingerprint,
            epoch=self._model.epoch,
            source_layout=self._layout.to_proto(),
            source_rank=self._rank,
            target_rank=rank,
            number=outgoing.parts[rank],
            extent=extent_to_proto(extent),
            regions=describe(self._store, copies, SOURCE),
        )
        if finish is not None:
            manifest.last = True
            manifest.tokens = finish.tokens
            manifest.first_token_id = finish.first_token_id
            manifest.made_token_ids.extend(finish.made)
        outgoing.parts[rank] += 1
        rows = address(copies, self._store, outgoing.destination.ranks[rank])
        if len(rows) == 0:
            self._agent.connect(remote)
            self._agent.notify(remote.agent_name, to_notification(manifest))
            return
        began_s = self._clock_s()
        transfer = self._agent.write(rows, self._store.memory(), remote, to_notification(manifest))
        outgoing.writes.append(_Write(transfer, began_s))
        # Between processes of one machine the call that posts a write often does all of it.
        self._settle(outgoing)
        outgoing.descriptors += len(rows)
        for kind, each in copies.items():
            outgoing.moved[kind] = outgoing.moved.get(kind, 0) + int(each[:, LENGTH].sum())

    def _settle(self, outgoing: _Outgoing) -> None:
        """Take note of the writes that are done."""
        for write in list(outgoing.writes):
            if write.transfer.poll():
                write.transfer.release()
                outgoing.writes.remove(write)
                outgoing.spans_s.append((write.began_s, self._clock_s()))

    def _advance(self, outgoing: _Outgoing) -> Event | None:
        """Written or WriteEnded when it is over, WriteFailed when it begins to end; Pushed when
        all that was pushed is written."""
        if outgoing.stopped:
            outgoing.writes = [w for w in outgoing.writes if not w.transfer.release()]
            if outgoing.writes:
                return None
            return WriteEnded(self._rank, outgoing.number, ReasonCode.REASON_UNSPECIFIED, "")
        try:
            self._settle(outgoing)
        except TransferFailed as error:
            return self._fail(outgoing, error)
        if outgoing.writes:
            return None
        if outgoing.finish is not None:
            return self._written(outgoing)
        if outgoing.said_tokens == outgoing.pushed_tokens:
            return None
        outgoing.said_tokens = outgoing.pushed_tokens
        return Pushed(self._rank, outgoing.number, outgoing.pushed_tokens)

    def _fail(self, outgoing: _Outgoing, error: HandoffError) -> Event:
        outgoing.stopped = True
        if isinstance(error, TransferFailed):
            for rank in outgoing.parts:
                self._agent.forget(outgoing.destination.ranks[rank].agent_name)
        return WriteFailed(self._rank, outgoing.number, error.reason, str(error))

    def _written(self, outgoing: _Outgoing) -> Written:
        moved = outgoing.moved
        mamba_bytes = moved.get(CONV, 0) + moved.get(SSM, 0)
        kv_bytes = moved.get(KV, 0)
        total_s, hidden_s = _busy_s(outgoing.spans_s, outgoing.finished_s)
        return Written(
            rank=self._rank,
            transfer=outgoing.number,
            kv_bytes=kv_bytes,
            mamba_bytes=mamba_bytes,
            mtp_bytes=sum(moved.values()) - kv_bytes - mamba_bytes,
            descriptors=outgoing.descriptors,
            transfer_ms=total_s * 1000.0,
            hidden_ms=hidden_s * 1000.0,
        )


def _busy_s(spans_s: list[tuple[float, float]], until_s: float) -> tuple[float, float]:
    """How long at least one of the spans lasted, and how much of that was before `until_s`."""
    total = hidden = 0.0
    reached = float("-inf")
    for begin, end in sorted(spans_s):
        begin = max(begin, reached)
        if end > begin:
            total += end - begin
            hidden += max(min(end, until_s) - begin, 0.0)
            reached = end
    return total, hidden
