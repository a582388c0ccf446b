"""The native engine: one step at a time, from waiting commands to new tokens.

A step polls hand-offs, reads prompt chunks within the token budget, and decodes one window (the
last token and its drafts) for every request that is ready. Single-threaded and without a clock of
its own. Requests that end or fail leave nothing behind: `_forget` is the only way out.
"""

from __future__ import annotations

from collections.abc import Callable

from protos.tandem.v1.common_pb2 import (
    REASON_INVALID_ARGUMENT,
    REASON_OUT_OF_CAPACITY,
    ReasonCode,
)
from protos.tandem.v1.handoff_pb2 import HandoffTicket
from workers.engine.commands import Cancel, Command, Prefill, Renew, Reserve, WorkItem
from workers.engine.events import (
    Credits,
    Ended,
    PrefillDone,
    Reserved,
    StateArrived,
    StepEvents,
    TokenRow,
)
from workers.engine.native.decoder import Decoder
from workers.engine.native.runner import ModelRunner
from workers.engine.native.scheduler import Scheduler
from workers.engine.native.sequence import Sequence, Stage
from workers.engine.sampling.grammar import GrammarCompiler, GrammarError
from workers.engine.sampling.logprobs import Chosen
from workers.engine.sampling.state import SamplingState
from workers.engine.sampling.verify import choose_windows
from workers.handoff.handoffs import Handoffs
from workers.handoff.receiver import Arrival, Refusal, Released
from workers.handoff.sender import SendFailed, Sent
from workers.state.memory import Hit, OutOfMemory, StateMemory
from workers.state.store import StateStore
from workers.telemetry import Tracing

# How often a waiting engine looks at its transfers: short against a hand-off, long against a poll.
_TRANSFER_POLL_S = 0.0005


class NativeEngine:
    """Owns every request that this worker has accepted, and the memory they hold."""

    def __init__(
        self,
        runner: ModelRunner,
        decoder: Decoder,
        scheduler: Scheduler,
        memory: StateMemory,
        store: StateStore,
        handoffs: Handoffs,
        grammars: GrammarCompiler,
        tracing: Tracing,
        clock_s: Callable[[], float],
        checkpoint_tokens: int,
    ) -> None:
        self._runner = runner
        self._decoder = decoder
        self._scheduler = scheduler
        self._memory = memory
        self._store = store
        self._handoffs = handoffs
        self._grammars = grammars
        self._tracing = tracing
        self._clock_s = clock_s
        self._checkpoint_tokens = checkpoint_tokens
        self._sequences: dict[int, Sequence] = {}
        self._arrivals = 0
        self._events = StepEvents()
        self._last_credits: Credits | None = None

    @property
    def idle_s(self) -> float | None:
        """How long the engine may be left alone: 0 not at all, None until the next command."""
        if self._last_credits is None or self._scheduler.busy:
            return 0.0
        return _TRANSFER_POLL_S if self._sequences or self._handoffs.busy else None

    @property
    def credits(self) -> Credits:
        """How much more this engine takes now."""
        memory = self._memory
        return Credits(
            memory.max_requests - memory.quarantined - len(self._sequences),
            memory.free_tokens,
            memory.total_tokens,
        )

    @property
    def preemptions(self) -> int:
        """How often a request had to give way since the start."""
        return self._scheduler.preemptions

    def handle(self, command: Command) -> None:
        """Apply one command; what comes of it is in the events of the next step."""
        match command:
            case Reserve():
                self._reserve(command)
            case Prefill():
                self._accept_prefill(command)
            case Cancel(key, reason):
                self._cancel(key, reason)
            case Renew(key):
                self._handoffs.renew(key, self._clock_s())

    def step(self) -> StepEvents:
        """Advance every request once and return what happened since the last step."""
        self._poll_handoffs()
        rows, draft_tokens = self._decoder.rows()
        for sequence, tokens, hit in self._scheduler.chunks(len(rows) * (draft_tokens + 1)):
            self._read(sequence, tokens, hit)
        if rows:
            for sequence, chosen in self._decoder.step(rows, draft_tokens):
                self._emit(sequence, chosen)
        self._note_credits()
        events, self._events = self._events, StepEvents()
        return events

    def audit(self) -> None:
        """Raise PoolError unless every block and slot is free, cached or held by a live request."""
        self._memory.audit()

    def close(self) -> None:
        """Free everything, transfers included."""
        self._sequences.clear()
        self._handoffs.close()

    def _accept(self, item: WorkItem, prompt: tuple[int, ...]) -> Sequence | None:
        """Take a request in, or say why not."""
        needed = len(prompt) + item.sampling.max_tokens + self._decoder.most_draft_tokens
        problem = None
        if not prompt or item.sampling.max_tokens < 1:
            problem = REASON_INVALID_ARGUMENT, "a request needs prompt tokens and room to answer"
        elif needed > self._memory.total_tokens:
            problem = (
                REASON_OUT_OF_CAPACITY,
                f"{needed} tokens needed with drafts, of {self._memory.total_tokens} in all",
            )
        elif self.credits.request_slots <= 0:
            problem = (
                REASON_OUT_OF_CAPACITY,
                f"all {self._memory.max_requests} state slots are in use",
            )
        matcher = None
        try:
            matcher = self._grammars.compile(item.sampling)
        except GrammarError as error:
            problem = REASON_INVALID_ARGUMENT, str(error)
        if problem is not None:
            self._events.ended.append(Ended(item.key, *problem))
            return None
        self._arrivals += 1
        sampling = SamplingState(item.sampling, prompt, matcher)
        sequence = Sequence(item, Stage.WAITING, self._arrivals, sampling, prompt)
        self._sequences[item.key] = sequence
        return sequence

    def _reserve(self, command: Reserve) -> None:
        item = command.item
        sequence = self._accept(item, command.token_ids)
        if sequence is None:
            return
        try:
            holding = self._memory.allocate(item.key, len(sequence.prompt), leased=True)
        except OutOfMemory as error:
            del self._sequences[item.key]
            self._events.ended.append(Ended(item.key, REASON_OUT_OF_CAPACITY, str(error)))
            return
        sequence.stage = Stage.RESERVED
        ticket = self._handoffs.receiver.reserve(
            item.key, holding.blocks, holding.slot, len(sequence.prompt), self._clock_s()
        )
        self._events.reserved.append(Reserved(item.key, ticket))

    def _accept_prefill(self, command: Prefill) -> None:
        sequence = self._accept(command.item, command.token_ids)
        if sequence is not None:
            sequence.ticket = command.ticket
            self._scheduler.wait(sequence)

    def _cancel(self, key: int, reason: ReasonCode.ValueType) -> None:
        sequence = self._sequences.get(key)
        if sequence is None:
            return
        if sequence.stage is Stage.RESERVED:
            now_s = self._clock_s()
            self._end(
                sequence, reason, quarantined=self._handoffs.receiver.cancel(key, reason, now_s)
            )
        else:
            self._end(sequence, reason)

    def _poll_handoffs(self) -> None:
        for outcome in self._handoffs.poll(self._clock_s()):
            match outcome:
                case Arrival():
                    self._arrived(outcome)
                case Refusal(key, reason, detail, quarantined):
                    self._end(self._sequences[key], reason, detail, quarantined=quarantined)
                case Released(key):
                    self._memory.end_quarantine(key)
                case Sent():
                    self._sent(outcome)
                case SendFailed(key, reason, detail):
                    sequence = self._sequences[key]
                    sequence.handing_off = False
                    self._end(sequence, *(sequence.ending or (reason, detail)))

    def _arrived(self, outcome: Arrival) -> None:
        sequence = self._sequences[outcome.handle]
        self._memory.settle(outcome.handle)
        self._events.state_arrived.append(StateArrived(outcome.handle))
        sequence.context_tokens = outcome.tokens
        # Token 0 came to the client from prefill; here it only has to be fed.
        sequence.sampling.append(outcome.first_token_id)
        self._begin_decoding(sequence)

    def _sent(self, outcome: Sent) -> None:
        sequence, report = self._sequences[outcome.handle], outcome.report
        sequence.handing_off = False
        if sequence.ending is not None:
            self._end(sequence, *sequence.ending)
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
        self._events.prefill_done.append(
            PrefillDone(outcome.handle, sequence.prefill_ms, report, sequence.cached_tokens)
        )
        self._forget(sequence)

    def _read(self, sequence: Sequence, tokens: int, hit: Hit | None) -> None:
        """Read a chunk, cache the prefix it ends, and after the last one make the first token."""
        if sequence.prefill_started_s is None:
            sequence.prefill_started_s = self._clock_s()
            self._begin_span(sequence, "prefill")
        if hit is not None:
            self._store.copy(hit.copies)
            if not sequence.output:
                sequence.cached_tokens = hit.tokens
        if sequence.ticket is not None and not sequence.handing_off:
            self._open_handoff(sequence, sequence.ticket)
        logits = self._runner.read(sequence, tokens)
        self._cache_prefix(sequence)
        if logits is None:
            self._handoffs.sender.advance(sequence.item.key, sequence.context_tokens)
            if sequence.unread_tokens == 0:
                self._begin_decoding(sequence)
            return
        (chosen,) = choose_windows(logits, [[]], [sequence.sampling])
        sequence.prefill_ms = (self._clock_s() - sequence.prefill_started_s) * 1000.0
        if sequence.span is not None:
            sequence.span.end(
                {
                    "tandem.prompt_tokens": len(sequence.prompt),
                    "tandem.cached_tokens": sequence.cached_tokens,
                }
            )
        if sequence.ticket is None:
            self._events.prefill_done.append(
                PrefillDone(sequence.item.key, sequence.prefill_ms, None, sequence.cached_tokens)
            )
        self._emit(sequence, chosen)
        if sequence.item.key not in self._sequences or sequence.ending is not None:
            return
        if sequence.ticket is not None:
            self._hand_off(sequence, chosen[0].token_id)
        else:
            self._begin_decoding(sequence)

    def _cache_prefix(self, sequence: Sequence) -> None:
        """Keep the state at chunk boundaries and at the end of the prompt for later requests."""
        read = sequence.context_tokens
        if read == len(sequence.prompt) or (
            read < len(sequence.prompt) and read % self._checkpoint_tokens == 0
        ):
            copies = self._memory.checkpoint(sequence.item.key, sequence.prompt[:read])
            if copies is not None:
                self._store.copy(copies)

    def _begin_decoding(self, sequence: Sequence) -> None:
        if sequence.stage is Stage.PREFILLING:
            self._scheduler.remove(sequence)
        self._begin_span(sequence, "decode")
        self._decoder.begin(sequence)

    def _open_handoff(self, sequence: Sequence, ticket: HandoffTicket) -> None:
        """Ask for leave to send while the first chunk is read; a cached prefix may leave then."""
        key = sequence.item.key
        holding = self._memory.holding(key)
        sequence.handing_off = True
        sender, prompt_tokens = self._handoffs.sender, len(sequence.prompt)
        sender.open(key, ticket, holding.blocks, holding.slot, prompt_tokens, self._clock_s())
        sender.advance(key, sequence.context_tokens)

    def _hand_off(self, sequence: Sequence, first_token_id: int) -> None:
        self._scheduler.remove(sequence)
        sequence.stage = Stage.SENDING
        self._begin_span(sequence, "handoff")
        self._handoffs.sender.finish(sequence.item.key, first_token_id, self._clock_s())

    def _emit(self, sequence: Sequence, chosen: list[Chosen]) -> None:
        """Report new tokens, and end the request if the last of them ends it."""
        first_index = len(sequence.output) - len(chosen)
        self._events.tokens.append(TokenRow(sequence.item.key, first_index, tuple(chosen)))
        ending = sequence.sampling.ended
        if ending is not None:
            self._end(sequence, ending.reason, ending.detail)

    def _end(
        self,
        sequence: Sequence,
        reason: ReasonCode.ValueType,
        detail: str = "",
        *,
        quarantined: bool = False,
    ) -> None:
        """End a request and free its memory, as soon as nobody reads or writes that any more."""
        if sequence.handing_off:
            # The network may still read the blocks: all this happens when it has let go.
            if sequence.ending is None:
                self._scheduler.remove(sequence)
                sequence.stage = Stage.SENDING
                sequence.ending = (reason, detail)
                self._handoffs.sender.abort(sequence.item.key, reason, detail)
            return
        self._events.ended.append(
            Ended(sequence.item.key, reason, detail, sequence.speculation.report())
        )
        self._forget(sequence, quarantined=quarantined)

    def _forget(self, sequence: Sequence, *, quarantined: bool = False) -> None:
        if sequence.span is not None:
            sequence.span.end({"tandem.output_tokens": len(sequence.output)})
        self._scheduler.remove(sequence)
        if quarantined:
            self._memory.quarantine(sequence.item.key)
        elif sequence.stage is not Stage.WAITING:
            self._memory.free(sequence.item.key)
        del self._sequences[sequence.item.key]

    def _begin_span(self, sequence: Sequence, name: str) -> None:
        item = sequence.item
        sequence.span = self._tracing.begin(
            name, item.traceparent, {"tandem.request_id": item.request_id}
        )

    def _note_credits(self) -> None:
        credits = self.credits
        if credits != self._last_credits:
            self._last_credits = credits
            self._events.credits = credits
