"""State that comes to this worker's requests from others, or leaves them for others.

Exists so that the engine's loop need not know what a hand-off goes through. While a request is
`handing_off`, the network may read its memory: whatever ends it meanwhile, it is forgotten only
when the network has let go.
"""

from __future__ import annotations

from collections.abc import Callable

from protos.tandem.v1.common_pb2 import REASON_OUT_OF_CAPACITY, ReasonCode
from workers.engine.events import PrefillDone, Reserved, StateArrived
from workers.engine.load import LoadMeter
from workers.engine.native.departures import Departures
from workers.engine.native.requests import Requests
from workers.engine.native.scheduler import Scheduler
from workers.engine.native.sequence import Sequence, Stage
from workers.handoff.handoffs import Handoffs
from workers.handoff.receiver import Arrival, Refusal, Released
from workers.handoff.sender import SendFailed, Sent
from workers.state.memory import OutOfMemory, StateMemory


class RequestHandoffs:
    """The hand-offs of one engine's requests. Called by its loop only."""

    def __init__(
        self,
        handoffs: Handoffs,
        requests: Requests,
        scheduler: Scheduler,
        memory: StateMemory,
        load: LoadMeter,
        departures: Departures,
        clock_s: Callable[[], float],
    ) -> None:
        self._handoffs = handoffs
        self._departures = departures
        self._requests = requests
        self._scheduler = scheduler
        self._memory = memory
        self._load = load
        self._clock_s = clock_s

    @property
    def busy(self) -> bool:
        """Whether anything is under way, or memory waits for a writer that is gone."""
        return self._handoffs.busy

    def reserve(self, sequence: Sequence, growth_tokens: int = 0) -> None:
        """Set memory aside for the state of a request and make a ticket for it."""
        item, receiver = sequence.item, self._handoffs.receiver
        tokens = sequence.unread_tokens + growth_tokens
        try:
            holding = self._memory.allocate(item.key, tokens, leased=True)
        except OutOfMemory as error:
            self._requests.refuse(item, REASON_OUT_OF_CAPACITY, str(error))
            return
        sequence.stage = Stage.RESERVED
        ticket = receiver.reserve(
            item.key, holding.blocks, holding.slot, tokens, self._clock_s(), growth_tokens
        )
        self._requests.events.reserved.append(Reserved(item.key, ticket, receiver.lease_s))

    def renew(self, key: int) -> None:
        """A request is still wanted."""
        self._handoffs.renew(key, self._clock_s())

    def open(self, sequence: Sequence) -> None:
        """Ask for leave to send while the first chunk is read; a cached prefix may leave then."""
        if sequence.ticket is None or sequence.handing_off:
            return
        key, sender = sequence.item.key, self._handoffs.sender
        holding = self._memory.holding(key)
        tokens = sequence.context_tokens + sequence.unread_tokens
        sequence.handing_off = True
        sender.open(key, sequence.ticket, holding.blocks, holding.slot, tokens, self._clock_s())
        sender.advance(key, sequence.context_tokens)

    def advance(self, sequence: Sequence) -> None:
        """Another chunk was read: its KV may leave."""
        if sequence.handing_off:
            self._handoffs.sender.advance(sequence.item.key, sequence.context_tokens)

    def finish(self, sequence: Sequence, first_token_id: int) -> None:
        """All was read, and the next token is known: the rest of the state leaves."""
        self._scheduler.remove(sequence)
        sequence.stage = Stage.SENDING
        self._requests.begin_span(sequence, "handoff")
        self._handoffs.sender.finish(sequence.item.key, first_token_id, self._clock_s())

    def end(self, sequence: Sequence, reason: ReasonCode.ValueType, detail: str = "") -> None:
        """End a request as soon as nobody reads or writes its memory any more."""
        key = sequence.item.key
        if sequence.stage is Stage.RESERVED:
            quarantined = self._handoffs.receiver.cancel(key, reason, self._clock_s())
            self._requests.end(sequence, reason, detail, quarantined=quarantined)
        elif not sequence.handing_off:
            self._requests.end(sequence, reason, detail)
        elif sequence.ending is None:
            self._scheduler.remove(sequence)
            sequence.stage = Stage.SENDING
            sequence.ending = (reason, detail)
            self._handoffs.sender.abort(key, reason, detail)

    def poll(self) -> list[Sequence]:
        """Take in what happened; returns requests whose state has arrived, to be decoded."""
        arrived: list[Sequence] = []
        for outcome in self._handoffs.poll(self._clock_s()):
            match outcome:
                case Arrival():
                    arrived.append(self._arrived(outcome))
                case Refusal(key, reason, detail, quarantined):
                    self._requests.end(self._requests[key], reason, detail, quarantined=quarantined)
                case Released(key):
                    self._memory.end_quarantine(key)
                case Sent():
                    self._sent(outcome)
                case SendFailed(key, reason, detail):
                    sequence = self._requests[key]
                    sequence.handing_off = False
                    if sequence.leaving and sequence.ending is None:
                        self._departures.failed(sequence, reason, detail)
                    else:
                        self._requests.end(sequence, *(sequence.ending or (reason, detail)))
        return arrived

    def close(self) -> None:
        """Give everything up."""
        self._handoffs.close()

    def _arrived(self, outcome: Arrival) -> Sequence:
        sequence = self._requests[outcome.handle]
        self._memory.settle(outcome.handle)
        sequence.context_tokens = outcome.tokens
        # Token 0 came to the client from prefill; here it only has to be fed. So did those that
        # another decode worker has made since the reservation.
        for token_id in outcome.made if sequence.output else (outcome.first_token_id,):
            sequence.sampling.append(token_id)
        arrived = StateArrived(outcome.handle, len(sequence.output))
        self._requests.events.state_arrived.append(arrived)
        return sequence

    def _sent(self, outcome: Sent) -> None:
        sequence, report = self._requests[outcome.handle], outcome.report
        sequence.handing_off = False
        if sequence.ending is not None:
            self._requests.end(sequence, *sequence.ending)
            return
        self._load.sent(
            self._load.state_bytes(sequence.context_tokens), report.transfer_ms / 1000.0
        )
        if sequence.leaving:
            self._departures.sent(sequence, report)
            return
        if sequence.span is not None:
            sequence.span.end(
                {
                    "tandem.kv_bytes": report.kv_bytes,
                    "tandem.mamba_bytes": report.mamba_bytes,
                    "tandem.mtp_bytes": report.mtp_bytes,
                    "tandem.descriptors": report.descriptors,
                    "tandem.transfer_ms": report.transfer_ms,
                    "tandem.hidden_ms": report.hidden_ms,
                }
            )
        self._requests.events.prefill_done.append(
            PrefillDone(outcome.handle, sequence.prefill_ms, report, sequence.cached_tokens)
        )
        self._requests.forget(sequence)
