"""The prefill side of a hand-off: write the state of a request into decode's memory.

Exists so that the engine says what to send and later hears how it went. The blocks and the slot
are read by the network until `poll` has reported the end of the request, whatever that is: they
must not be freed or written before.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from protos.tandem.v1.common_pb2 import ReasonCode
from protos.tandem.v1.handoff_pb2 import HandoffTicket, StateKind
from protos.tandem.v1.inference_pb2 import HandoffReport
from workers.handoff.agent import NixlAgent, Transfer
from workers.handoff.errors import HandoffError, TransferFailed
from workers.handoff.manifest import ModelVersion, make_manifest, to_notification
from workers.handoff.ticket import plan_write
from workers.state.layout import Region
from workers.state.store import StateStore

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sent:
    """Every byte was written; the blocks and the slot may be freed.

    `report.handoff_ms` ends when the write was seen to be done; the time that decode takes to
    check the bytes is not in it.
    """

    handle: int
    report: HandoffReport


@dataclass(frozen=True, slots=True)
class SendFailed:
    """The transfer is over and reads no more; the blocks and the slot may be freed."""

    handle: int
    reason: ReasonCode.ValueType
    detail: str


@dataclass(slots=True)
class _Outgoing:
    handle: int
    transfer: Transfer
    report: HandoffReport
    started_s: float
    failure: SendFailed | None = None  # set: waiting for NIXL to let go


class HandoffSender:
    """All hand-offs that leave this worker. Called by the engine loop only; never blocks on one."""

    def __init__(
        self, agent: NixlAgent, store: StateStore, model: ModelVersion, *, timeout_s: float
    ) -> None:
        self._agent = agent
        self._store = store
        self._model = model
        self._timeout_s = timeout_s
        self._outgoing: dict[int, _Outgoing] = {}
        self._failed: list[SendFailed] = []

    def start(
        self,
        handle: int,
        ticket: HandoffTicket,
        blocks: Sequence[int],
        slot: int,
        tokens: int,
        first_token_id: int,
        now_s: float,
    ) -> None:
        """Begin to send the state of `tokens` tokens; the outcome comes from `poll`, always.

        The unused places of the last block are zeroed, because blocks travel whole.

        Raises:
            ValueError: the handle is being sent already, or the blocks do not cover the tokens.
        """
        if handle in self._outgoing:
            raise ValueError(f"handle {handle} is being sent already")
        regions = self._store.layout.regions(blocks, slot, tokens)
        try:
            plan = plan_write(ticket, self._model, self._store, regions)
            self._clear_tail(blocks, tokens)
            manifest = make_manifest(
                self._store, regions, ticket, self._model, tokens, first_token_id
            )
            transfer = self._agent.write(
                plan.copies, self._store.memory(), plan.remote, to_notification(manifest)
            )
        except HandoffError as error:
            if isinstance(error, TransferFailed):
                self._agent.forget(ticket.ranks[0].agent_name)
            self._failed.append(SendFailed(handle, error.reason, str(error)))
            return
        self._outgoing[handle] = _Outgoing(
            handle, transfer, _report(regions, len(plan.copies)), now_s
        )

    def poll(self, now_s: float) -> list[Sent | SendFailed]:
        """Drive every transfer and return those that ended since the last call."""
        ended: list[Sent | SendFailed] = [*self._failed]
        self._failed.clear()
        for outgoing in list(self._outgoing.values()):
            outcome = self._advance(outgoing, now_s)
            if outcome is not None:
                del self._outgoing[outgoing.handle]
                ended.append(outcome)
        return ended

    def abort(self, handle: int) -> None:
        """Stop sending; `poll` reports SendFailed with REASON_CANCELLED when NIXL has let go.

        Nothing happens when the handle is not being sent.
        """
        outgoing = self._outgoing.get(handle)
        if outgoing is not None and outgoing.failure is None:
            outgoing.failure = SendFailed(
                handle, ReasonCode.REASON_CANCELLED, "cancelled while the state was being sent"
            )

    def close(self) -> None:
        """Give up everything under way; the agent is closed by whoever made it."""
        for outgoing in self._outgoing.values():
            outgoing.transfer.release()
        self._outgoing.clear()
        self._failed.clear()

    def _advance(self, outgoing: _Outgoing, now_s: float) -> Sent | SendFailed | None:
        transfer = outgoing.transfer
        if outgoing.failure is None:
            try:
                if transfer.poll():
                    transfer.release()
                    outgoing.report.transfer_ms = transfer.duration_ms
                    outgoing.report.handoff_ms = (now_s - outgoing.started_s) * 1000.0
                    return Sent(outgoing.handle, outgoing.report)
                if now_s - outgoing.started_s < self._timeout_s:
                    return None
                detail = f"writing to {transfer.remote_name}: not done after {self._timeout_s} s"
            except TransferFailed as error:
                detail = str(error)
            outgoing.failure = SendFailed(
                outgoing.handle, ReasonCode.REASON_TRANSFER_FAILED, detail
            )
        if not transfer.release():
            return None
        if outgoing.failure.reason == ReasonCode.REASON_TRANSFER_FAILED:
            self._agent.forget(transfer.remote_name)
        return outgoing.failure

    def _clear_tail(self, blocks: Sequence[int], tokens: int) -> None:
        geometry = self._store.geometry
        used_tokens = tokens % geometry.block_tokens
        if used_tokens and geometry.kv_block_bytes:
            self._store.clear_tail(blocks[geometry.blocks_for(tokens) - 1], used_tokens)


_MTP_KINDS = (StateKind.STATE_KIND_DRAFT_KV, StateKind.STATE_KIND_DRAFT_HIDDEN)


def _report(regions: Iterable[Region], descriptors: int) -> HandoffReport:
    report = HandoffReport(descriptors=descriptors)
    for region in regions:
        if region.kind == StateKind.STATE_KIND_ATTENTION_KV:
            report.kv_bytes += region.length_bytes
        elif region.kind in _MTP_KINDS:
            report.mtp_bytes += region.length_bytes
        else:
            report.mamba_bytes += region.length_bytes
    return report
