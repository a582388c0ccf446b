"""Requests that leave for another decode worker while they decode.

Exists so that a worker can be emptied without waiting for its answers to end and without reading
anything again. The KV of whole blocks leaves while the request decodes on; when all of it is there
the request pauses at a step boundary, its state is made whole (the window that is pending is folded
in, the MTP block sees what it has not seen), and the rest leaves: that is the pause. Until the last
byte is written the request can stay: its state is here, whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from protos.tandem.v1.common_pb2 import (
    REASON_CANCELLED,
    REASON_MANIFEST_MISMATCH,
    REASON_MIGRATED,
    REASON_OUT_OF_CAPACITY,
    ReasonCode,
)
from protos.tandem.v1.handoff_pb2 import HandoffTicket
from protos.tandem.v1.inference_pb2 import HandoffReport
from workers.engine.events import Ended, Stayed
from workers.engine.native.decoder import Decoder
from workers.engine.native.requests import Requests
from workers.engine.native.runner import ModelRunner
from workers.engine.native.scheduler import Scheduler
from workers.engine.native.sequence import Sequence, Stage
from workers.handoff.sender import HandoffSender
from workers.state.memory import OutOfMemory, StateMemory


class Departures:
    """Decides when each part of a request that decodes may leave. Called by the engine's loop."""

    def __init__(
        self,
        sender: HandoffSender,
        requests: Requests,
        scheduler: Scheduler,
        memory: StateMemory,
        runner: ModelRunner,
        decoder: Decoder,
        clock_s: Callable[[], float],
    ) -> None:
        self._sender = sender
        self._requests = requests
        self._scheduler = scheduler
        self._memory = memory
        self._runner = runner
        self._decoder = decoder
        self._clock_s = clock_s
        self._leaving: dict[int, Sequence] = {}

    def order(self, sequence: Sequence, ticket: HandoffTicket | None) -> None:
        """A router wants a request to go on where the ticket says, or without one, to stay."""
        key = sequence.item.key
        if ticket is None:
            if sequence.leaving:
                self._sender.abort(key, REASON_CANCELLED, "the request is to stay")
            return
        problem = self._problem(sequence, ticket)
        if problem is not None:
            self._requests.events.stayed.append(Stayed(key, *problem))
            return
        with contextlib.suppress(OutOfMemory):  # then it pauses sooner
            self._memory.grow(key, ticket.tokens + self._window_tokens)
        holding = self._memory.holding(key)
        blocks, missing = holding.blocks, ticket.tokens - self._room_tokens(key)
        if missing > 0:
            # Blocks that nothing will be in when it leaves.
            blocks += blocks[-1:] * -(-missing // self._memory.block_tokens)
        sequence.ticket, sequence.leaving, sequence.handing_off = ticket, True, True
        self._leaving[key] = sequence
        self._sender.open(key, ticket, blocks, holding.slot, ticket.tokens, self._clock_s())

    def advance(self) -> None:
        """Between two steps: more KV may leave, and who has nothing else to send pauses."""
        for key, sequence in list(self._leaving.items()):
            if not sequence.leaving or key not in self._requests or sequence.ending is not None:
                del self._leaving[key]
                continue
            unseen = 0 if sequence.undrafted is None else len(sequence.undrafted)
            # Of what was read the KV is final, and of what the MTP block has seen its draft KV.
            self._sender.advance(key, sequence.context_tokens - max(unseen - 1, 0))
            if self._sender.caught_up(key) or not self._has_room(sequence):
                del self._leaving[key]
                self._pause(sequence)

    def sent(self, sequence: Sequence, report: HandoffReport) -> None:
        """All is written: the request goes on elsewhere."""
        if sequence.span is not None:
            sequence.span.end({"tandem.transfer_ms": report.transfer_ms})
        speculation = sequence.speculation.report()
        self._requests.events.ended.append(
            Ended(sequence.item.key, REASON_MIGRATED, "", speculation, report)
        )
        self._requests.forget(sequence)

    def failed(self, sequence: Sequence, reason: ReasonCode.ValueType, detail: str) -> None:
        """The hand-off is over and reads no more: the request goes on here."""
        sequence.leaving, sequence.ticket = False, None
        self._leaving.pop(sequence.item.key, None)
        if sequence.stage is Stage.SENDING:
            self._requests.begin_span(sequence, "decode")
            self._decoder.begin(sequence)
        self._requests.events.stayed.append(Stayed(sequence.item.key, reason, detail))

    def _problem(
        self, sequence: Sequence, ticket: HandoffTicket
    ) -> tuple[ReasonCode.ValueType, str] | None:
        """Why a request cannot leave now."""
        if sequence.leaving or sequence.stage is not Stage.DECODING:
            where = "is leaving already" if sequence.leaving else "has no state here now"
            return REASON_OUT_OF_CAPACITY, f"the request {where}"
        tokens, known = sequence.context_tokens, ticket.tokens - ticket.growth_tokens
        if tokens < known:
            return REASON_MANIFEST_MISMATCH, f"tokens: {known} are expected, it has {tokens}"
        if tokens > ticket.tokens:
            return REASON_OUT_OF_CAPACITY, f"it has {tokens} tokens, more than {ticket.tokens}"
        return None

    def _room_tokens(self, key: int) -> int:
        return len(self._memory.holding(key).blocks) * self._memory.block_tokens

    @property
    def _window_tokens(self) -> int:
        return self._decoder.most_draft_tokens + 1

    def _has_room(self, sequence: Sequence) -> bool:
        """Whether the reservation, and the memory here, hold what another step may make."""
        assert sequence.ticket is not None
        most = min(sequence.ticket.tokens, self._room_tokens(sequence.item.key))
        return sequence.context_tokens + self._window_tokens <= most

    def _pause(self, sequence: Sequence) -> None:
        assert sequence.ticket is not None
        self._scheduler.remove(sequence)
        sequence.stage = Stage.SENDING
        self._requests.begin_span(sequence, "handoff")
        self._runner.settle(sequence)
        known = sequence.ticket.tokens - sequence.ticket.growth_tokens
        more = sequence.context_tokens - known
        made = sequence.output[len(sequence.output) - more :]
        self._sender.finish(
            sequence.item.key,
            sequence.output[-1],
            self._clock_s(),
            sequence.context_tokens,
            made,
        )
