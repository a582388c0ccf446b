"""The native engine: one step at a time, from waiting commands to new tokens.

A step polls hand-offs, reads one chunk of one prompt, and decodes one token for every request
that is ready, so a long prompt delays running answers by one chunk and no more. Memory for a
whole answer is taken when a request is accepted, so nothing can run out in the middle.
Single-threaded and without a clock of its own.
"""

from __future__ import annotations

from collections.abc import Callable

from protos.tandem.v1.common_pb2 import (
    REASON_INVALID_ARGUMENT,
    REASON_OUT_OF_CAPACITY,
    ReasonCode,
)
from workers.engine.commands import Cancel, Command, Prefill, Reserve, WorkItem
from workers.engine.events import (
    Credits,
    Ended,
    PrefillDone,
    Reserved,
    StateArrived,
    StepEvents,
    TokenRow,
)
from workers.engine.native.runner import ModelRunner
from workers.engine.native.sampler import Chosen, choose
from workers.engine.native.sequence import Sequence, Stage
from workers.handoff.agent import NixlAgent
from workers.handoff.receiver import Arrival, HandoffReceiver
from workers.handoff.sender import HandoffSender, Sent
from workers.state.memory import OutOfMemory, StateMemory
from workers.telemetry import Tracing

# How often a waiting engine looks at its transfers: short against a hand-off, long against a poll.
_TRANSFER_POLL_S = 0.0005


class NativeEngine:
    """Owns every request that this worker has accepted, and the memory they hold."""

    def __init__(
        self,
        runner: ModelRunner,
        memory: StateMemory,
        agent: NixlAgent,
        sender: HandoffSender,
        receiver: HandoffReceiver,
        tracing: Tracing,
        clock_s: Callable[[], float],
        prefill_chunk_tokens: int,
    ) -> None:
        self._runner = runner
        self._memory = memory
        self._agent = agent
        self._sender = sender
        self._receiver = receiver
        self._tracing = tracing
        self._clock_s = clock_s
        self._prefill_chunk_tokens = prefill_chunk_tokens
        self._sequences: dict[int, Sequence] = {}
        self._events = StepEvents()
        self._last_credits: Credits | None = None

    @property
    def idle_s(self) -> float | None:
        """How long the engine may be left alone: 0 not at all, None until the next command."""
        stages = {sequence.stage for sequence in self._sequences.values()}
        if self._last_credits is None or stages & {Stage.PREFILLING, Stage.DECODING}:
            return 0.0
        return _TRANSFER_POLL_S if stages else None

    def handle(self, command: Command) -> None:
        """Apply one command; what comes of it is in the events of the next step."""
        match command:
            case Reserve(item):
                self._reserve(item)
            case Prefill():
                self._accept_prefill(command)
            case Cancel(key, reason):
                self._cancel(key, reason)

    def step(self) -> StepEvents:
        """Advance every request once and return what happened since the last step."""
        self._poll_arrivals()
        self._poll_sends()
        self._prefill_one_chunk()
        self._decode_all()
        self._note_credits()
        events, self._events = self._events, StepEvents()
        return events

    @property
    def credits(self) -> Credits:
        """How much more this engine takes now."""
        memory = self._memory
        return Credits(memory.free_slots, memory.free_tokens, memory.total_tokens)

    def audit(self) -> None:
        """Raise PoolError unless every block and slot is free or held by a live request."""
        self._memory.audit()

    def close(self) -> None:
        """Free everything, transfers included."""
        for key in list(self._sequences):
            self._receiver.cancel(key)
            self._sender.abort(key)
        self._sequences.clear()
        self._sender.close()
        self._receiver.close()
        self._agent.close()

    def _admit(self, item: WorkItem, tokens: int, stage: Stage) -> Sequence | None:
        """Take memory for `tokens` tokens, or say that there is none."""
        try:
            blocks, slot = self._memory.allocate(item.key, tokens, leased=stage is Stage.RESERVED)
        except OutOfMemory as error:
            self._events.ended.append(Ended(item.key, REASON_OUT_OF_CAPACITY, str(error)))
            return None
        sequence = Sequence(item, stage, blocks, slot)
        self._sequences[item.key] = sequence
        return sequence

    def _reserve(self, item: WorkItem) -> None:
        tokens = item.prompt_tokens + item.sampling.max_tokens
        sequence = self._admit(item, tokens, Stage.RESERVED)
        if sequence is not None:
            ticket = self._receiver.reserve(
                item.key, sequence.blocks, sequence.slot, item.prompt_tokens, self._clock_s()
            )
            self._events.reserved.append(Reserved(item.key, ticket))

    def _accept_prefill(self, command: Prefill) -> None:
        item, prompt = command.item, command.token_ids
        if not prompt or item.sampling.max_tokens < 1:
            detail = "a prefill needs at least one prompt token and one token to make"
            self._events.ended.append(Ended(item.key, REASON_INVALID_ARGUMENT, detail))
            return
        answer_tokens = item.sampling.max_tokens if command.ticket is None else 0
        sequence = self._admit(item, len(prompt) + answer_tokens, Stage.PREFILLING)
        if sequence is not None:
            sequence.prompt = prompt
            sequence.ticket = command.ticket

    def _cancel(self, key: int, reason: ReasonCode.ValueType) -> None:
        sequence = self._sequences.get(key)
        if sequence is None:
            return
        if sequence.stage is Stage.SENDING:
            # The network may still read the blocks: they are freed when the sender lets go.
            sequence.ending = reason
            self._sender.abort(key)
            return
        if sequence.stage is Stage.RESERVED:
            self._receiver.cancel(key)
        self._end(sequence, reason)

    def _poll_arrivals(self) -> None:
        for outcome in self._receiver.poll(self._clock_s()):
            sequence = self._sequences[outcome.handle]
            if not isinstance(outcome, Arrival):
                self._end(sequence, outcome.reason, outcome.detail)
                continue
            sequence.stage = Stage.DECODING
            sequence.context_tokens = outcome.tokens
            self._memory.settle(outcome.handle)
            self._events.state_arrived.append(StateArrived(outcome.handle))
            self._begin_span(sequence, "decode")
            # Token 0 came to the client from prefill; here it only has to be fed.
            sequence.append(outcome.first_token_id)

    def _poll_sends(self) -> None:
        now_s = self._clock_s()
        for outcome in self._sender.poll(now_s):
            sequence = self._sequences[outcome.handle]
            if sequence.ending is not None:
                self._end(sequence, sequence.ending)
            elif isinstance(outcome, Sent):
                outcome.report.handoff_ms = (now_s - sequence.sending_began_s) * 1000.0
                if sequence.span is not None:
                    sequence.span.end(
                        {
                            "tandem.kv_bytes": outcome.report.kv_bytes,
                            "tandem.mamba_bytes": outcome.report.mamba_bytes,
                            "tandem.descriptors": outcome.report.descriptors,
                        }
                    )
                self._events.prefill_done.append(
                    PrefillDone(outcome.handle, sequence.prefill_ms, outcome.report)
                )
                self._forget(sequence)
            else:
                self._end(sequence, outcome.reason, outcome.detail)

    def _prefill_one_chunk(self) -> None:
        """Read a chunk of the oldest unread prompt, and sample its first token after the last."""
        sequence = self._first(Stage.PREFILLING)
        if sequence is None:
            return
        if sequence.prefill_started_s is None:
            sequence.prefill_started_s = self._clock_s()
            self._begin_span(sequence, "prefill")
        logits = self._runner.prefill_chunk(sequence, self._prefill_chunk_tokens)
        if logits is None:
            return
        chosen = choose(logits, [sequence.item.sampling], [0])[0]
        sequence.prefill_ms = (self._clock_s() - sequence.prefill_started_s) * 1000.0
        if sequence.span is not None:
            sequence.span.end({"tandem.prompt_tokens": len(sequence.prompt)})
        reason = self._append(sequence, chosen)
        if reason is not None:
            self._end(sequence, reason)
        elif sequence.ticket is not None:
            self._hand_off(sequence, chosen.token_id)
        else:
            self._events.prefill_done.append(
                PrefillDone(sequence.item.key, sequence.prefill_ms, None)
            )
            sequence.stage = Stage.DECODING
            self._begin_span(sequence, "decode")

    def _hand_off(self, sequence: Sequence, first_token_id: int) -> None:
        assert sequence.ticket is not None
        sequence.stage = Stage.SENDING
        sequence.sending_began_s = self._clock_s()
        self._begin_span(sequence, "handoff")
        self._sender.start(
            sequence.item.key,
            sequence.ticket,
            sequence.blocks,
            sequence.slot,
            sequence.context_tokens,
            first_token_id,
            sequence.sending_began_s,
        )

    def _decode_all(self) -> None:
        batch = [s for s in self._sequences.values() if s.stage is Stage.DECODING]
        if not batch:
            return
        logits = self._runner.decode(batch)
        chosen = choose(logits, [s.item.sampling for s in batch], [s.output_tokens for s in batch])
        for sequence, choice in zip(batch, chosen, strict=True):
            reason = self._append(sequence, choice)
            if reason is not None:
                self._end(sequence, reason)

    def _append(self, sequence: Sequence, chosen: Chosen) -> ReasonCode.ValueType | None:
        index = sequence.output_tokens
        reason = sequence.append(chosen.token_id)
        logprobs = None if chosen.logprob is None else (chosen.logprob,)
        self._events.tokens.append(TokenRow(sequence.item.key, index, (chosen.token_id,), logprobs))
        return reason

    def _end(self, sequence: Sequence, reason: ReasonCode.ValueType, detail: str = "") -> None:
        self._events.ended.append(Ended(sequence.item.key, reason, detail))
        self._forget(sequence)

    def _forget(self, sequence: Sequence) -> None:
        if sequence.span is not None:
            sequence.span.end({"tandem.output_tokens": sequence.output_tokens})
        self._memory.free(sequence.item.key)
        del self._sequences[sequence.item.key]

    def _first(self, stage: Stage) -> Sequence | None:
        return next((s for s in self._sequences.values() if s.stage is stage), None)

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
