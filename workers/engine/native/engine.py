"""The native engine: one step at a time, from waiting commands to new tokens.

A step polls hand-offs, reads prompt chunks within the token budget, and decodes one window (the
last token and its drafts) for every request that is ready. Single-threaded and without a clock of
its own. Requests that end or fail leave nothing behind: `_forget` is the only way out.
"""

from __future__ import annotations

from collections.abc import Callable

from protos.tandem.v1.common_pb2 import (
    REASON_DRAINING,
    REASON_INVALID_ARGUMENT,
    REASON_OUT_OF_CAPACITY,
    ReasonCode,
)
from workers.engine.commands import Cancel, Command, Drain, Prefill, Renew, Reserve, WorkItem
from workers.engine.events import (
    Credits,
    Ended,
    PrefillDone,
    Reserved,
    StateArrived,
    StepEvents,
    TokenRow,
)
from workers.engine.load import LoadMeter
from workers.engine.native.decoder import Decoder
from workers.engine.native.runner import ModelRunner
from workers.engine.native.scheduler import Scheduler
from workers.engine.native.sequence import Sequence, Stage
from workers.engine.sampling.grammar import GrammarCompiler, GrammarError
from workers.engine.sampling.logprobs import Chosen
from workers.engine.sampling.state import SamplingState
from workers.engine.sampling.verify import choose_windows
from workers.handoff.agent import NixlAgent
from workers.handoff.receiver import Arrival, HandoffReceiver
from workers.handoff.sender import HandoffSender, Sent
from workers.parallel.errors import RanksLost
from workers.parallel.group import RankGroup
from workers.state.memory import Hit, OutOfMemory, StateMemory
from workers.telemetry import Tracing

# How often a waiting engine looks at its transfers: short against a hand-off, long against a poll.
_TRANSFER_POLL_S = 0.0005
# How often routers hear of a load that merely went up or down.
_LOAD_NEWS_S = 0.1


class NativeEngine:
    """Owns every request that this worker has accepted, and the memory they hold."""

    def __init__(
        self,
        runner: ModelRunner,
        decoder: Decoder,
        scheduler: Scheduler,
        memory: StateMemory,
        agent: NixlAgent,
        sender: HandoffSender,
        receiver: HandoffReceiver,
        grammars: GrammarCompiler,
        tracing: Tracing,
        load: LoadMeter,
        clock_s: Callable[[], float],
        checkpoint_tokens: int,
        group: RankGroup | None = None,
    ) -> None:
        self._runner = runner
        self._decoder = decoder
        self._scheduler = scheduler
        self._memory = memory
        self._agent = agent
        self._sender = sender
        self._receiver = receiver
        self._grammars = grammars
        self._tracing = tracing
        self._clock_s = clock_s
        self._checkpoint_tokens = checkpoint_tokens
        self._group = group
        self._sequences: dict[int, Sequence] = {}
        self._arrivals = 0
        self._events = StepEvents()
        self._last_credits: Credits | None = None
        self._load = load
        self._draining = False
        self._asked_to_drain = False  # and it was not said yet that nothing is left

    @property
    def idle_s(self) -> float | None:
        """How long the engine may be left alone: 0 not at all, None until the next command."""
        if self._last_credits is None or self._scheduler.busy:
            return 0.0
        return _TRANSFER_POLL_S if self._sequences else None

    @property
    def credits(self) -> Credits:
        """How much more this engine takes now."""
        memory = self._memory
        return Credits(
            memory.max_requests - len(self._sequences),
            memory.free_tokens,
            memory.total_tokens,
            memory.max_requests,
            self._draining,
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
                self._receiver.renew(key, self._clock_s())
            case Drain(resume):
                self._draining = self._asked_to_drain = not resume

    def step(self) -> StepEvents:
        """Advance every request once and return what happened since the last step."""
        self._poll_arrivals()
        self._poll_sends()
        rows, draft_tokens = self._decoder.rows()
        for sequence, tokens, hit in self._scheduler.chunks(len(rows) * (draft_tokens + 1)):
            began_s, before = self._clock_s(), sequence.context_tokens
            self._read(sequence, tokens, hit)
            self._load.read(sequence.context_tokens - before, self._clock_s() - began_s)
        if rows:
            began_s, made = self._clock_s(), 0
            for sequence, chosen in self._decoder.step(rows, draft_tokens):
                made += len(chosen)
                self._emit(sequence, chosen)
            self._load.decoded(len(rows), made, self._clock_s() - began_s)
        self._note_credits()
        self._note_load()
        self._events.cache = self._memory.take_cache_changes() or None
        if self._asked_to_drain and not self._sequences:
            self._asked_to_drain, self._events.drained = False, True
        events, self._events = self._events, StepEvents()
        return events

    def on_lost(self, callback: Callable[[RanksLost], object]) -> None:
        """Have `callback` called, in another thread, when another rank of this worker is lost."""
        if self._group is not None:
            self._group.on_lost(callback)

    def audit(self) -> None:
        """Raise PoolError unless every block and slot is free, cached or held by a live request."""
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
        if self._group is not None:
            self._group.close()

    def _accept(self, item: WorkItem, token_ids: tuple[int, ...]) -> Sequence | None:
        """Take a request in, or say why not."""
        self._events.taken.append(item.key)
        generated = token_ids[len(token_ids) - item.generated_tokens :]
        prompt = token_ids[: len(token_ids) - item.generated_tokens]
        needed = len(prompt) + item.sampling.max_tokens + self._decoder.most_draft_tokens
        problem = None
        if self._draining:
            problem = REASON_DRAINING, "the worker takes no more work"
        elif not prompt or item.sampling.max_tokens < max(len(generated), 1):
            problem = REASON_INVALID_ARGUMENT, "a request needs prompt tokens and room to answer"
        elif needed > self._memory.total_tokens:
            problem = (
                REASON_OUT_OF_CAPACITY,
                f"{needed} tokens needed with drafts, of {self._memory.total_tokens} in all",
            )
        elif len(self._sequences) >= self._memory.max_requests:
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
        for token_id in generated:
            sampling.append(token_id)
        if sampling.ended is not None:
            # Whoever made these tokens could not say any more that they were all.
            self._events.ended.append(Ended(item.key, sampling.ended.reason))
            return None
        sequence = Sequence(item, Stage.WAITING, self._arrivals, sampling, prompt)
        self._sequences[item.key] = sequence
        return sequence

    def _reserve(self, command: Reserve) -> None:
        item = command.item
        sequence = self._accept(item, command.token_ids)
        if sequence is None:
            return
        try:
            holding = self._memory.allocate(item.key, sequence.unread_tokens, leased=True)
        except OutOfMemory as error:
            del self._sequences[item.key]
            self._events.ended.append(Ended(item.key, REASON_OUT_OF_CAPACITY, str(error)))
            return
        sequence.stage = Stage.RESERVED
        ticket = self._receiver.reserve(
            item.key, holding.blocks, holding.slot, sequence.unread_tokens, self._clock_s()
        )
        self._events.reserved.append(Reserved(item.key, ticket, self._receiver.lease_s))

    def _accept_prefill(self, command: Prefill) -> None:
        sequence = self._accept(command.item, command.token_ids)
        if sequence is not None:
            sequence.ticket = command.ticket
            self._scheduler.wait(sequence)

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
            self._memory.settle(outcome.handle)
            self._events.state_arrived.append(StateArrived(outcome.handle))
            sequence.context_tokens = outcome.tokens
            # Token 0 came to the client from prefill; here it only has to be fed.
            if not sequence.output:
                sequence.sampling.append(outcome.first_token_id)
            self._begin_decoding(sequence)

    def _poll_sends(self) -> None:
        now_s = self._clock_s()
        for outcome in self._sender.poll(now_s):
            sequence = self._sequences[outcome.handle]
            if sequence.ending is not None:
                self._end(sequence, sequence.ending)
            elif isinstance(outcome, Sent):
                outcome.report.handoff_ms = (now_s - sequence.sending_began_s) * 1000.0
                self._load.sent(
                    self._load.state_bytes(sequence.context_tokens),
                    outcome.report.transfer_ms / 1000.0,
                )
                if sequence.span is not None:
                    sequence.span.end(
                        {
                            "tandem.kv_bytes": outcome.report.kv_bytes,
                            "tandem.mamba_bytes": outcome.report.mamba_bytes,
                            "tandem.mtp_bytes": outcome.report.mtp_bytes,
                            "tandem.descriptors": outcome.report.descriptors,
                        }
                    )
                self._events.prefill_done.append(
                    PrefillDone(
                        outcome.handle, sequence.prefill_ms, outcome.report, sequence.cached_tokens
                    )
                )
                self._forget(sequence)
            else:
                self._end(sequence, outcome.reason, outcome.detail)

    def _read(self, sequence: Sequence, tokens: int, hit: Hit | None) -> None:
        """Read a chunk, cache the prefix it ends, and after the last one make the first token."""
        if sequence.prefill_started_s is None:
            sequence.prefill_started_s = self._clock_s()
            self._begin_span(sequence, "prefill")
        if hit is not None:
            self._runner.copy(hit.copies)
            if len(sequence.output) == sequence.item.generated_tokens:
                sequence.cached_tokens = hit.tokens
        logits = self._runner.read(sequence, tokens)
        self._cache_prefix(sequence)
        if sequence.unread_tokens:
            return
        if logits is None:
            if not sequence.prefill_ms:
                self._note_prompt_read(sequence)
            # Read anew: the tokens after the prompt are known, and the last one is to be fed.
            if sequence.ticket is None:
                self._begin_decoding(sequence)
            else:
                self._hand_off(sequence, sequence.output[-1])
            return
        (chosen,) = choose_windows(logits, [[]], [sequence.sampling])
        self._note_prompt_read(sequence)
        if sequence.ticket is None or sequence.sampling.ended is not None:
            self._events.prefill_done.append(
                PrefillDone(sequence.item.key, sequence.prefill_ms, None, sequence.cached_tokens)
            )
        self._emit(sequence, chosen)
        if sequence.item.key not in self._sequences:
            return
        if sequence.ticket is not None:
            self._hand_off(sequence, chosen[0].token_id)
        else:
            self._begin_decoding(sequence)

    def _note_prompt_read(self, sequence: Sequence) -> None:
        assert sequence.prefill_started_s is not None
        sequence.prefill_ms = (self._clock_s() - sequence.prefill_started_s) * 1000.0
        if sequence.span is not None:
            sequence.span.end(
                {
                    "tandem.prompt_tokens": len(sequence.prompt),
                    "tandem.cached_tokens": sequence.cached_tokens,
                }
            )

    def _cache_prefix(self, sequence: Sequence) -> None:
        """Keep the state at chunk boundaries and at the end of the prompt for later requests."""
        read = sequence.context_tokens
        if read == len(sequence.prompt) or (
            read < len(sequence.prompt) and read % self._checkpoint_tokens == 0
        ):
            copies = self._memory.checkpoint(sequence.item.key, sequence.prompt[:read])
            if copies is not None:
                self._runner.copy(copies)

    def _begin_decoding(self, sequence: Sequence) -> None:
        if sequence.stage is Stage.PREFILLING:
            self._scheduler.remove(sequence)
        self._begin_span(sequence, "decode")
        self._decoder.begin(sequence)

    def _hand_off(self, sequence: Sequence, first_token_id: int) -> None:
        assert sequence.ticket is not None
        self._scheduler.remove(sequence)
        sequence.stage = Stage.SENDING
        sequence.sending_began_s = self._clock_s()
        self._begin_span(sequence, "handoff")
        holding = self._memory.holding(sequence.item.key)
        self._sender.start(
            sequence.item.key,
            sequence.ticket,
            holding.blocks,
            holding.slot,
            sequence.context_tokens,
            first_token_id,
            sequence.sending_began_s,
        )

    def _emit(self, sequence: Sequence, chosen: list[Chosen]) -> None:
        """Report new tokens, and end the request if the last of them ends it."""
        first_index = len(sequence.output) - len(chosen)
        self._events.tokens.append(TokenRow(sequence.item.key, first_index, tuple(chosen)))
        ending = sequence.sampling.ended
        if ending is not None:
            self._end(sequence, ending.reason, ending.detail)

    def _end(self, sequence: Sequence, reason: ReasonCode.ValueType, detail: str = "") -> None:
        self._events.ended.append(
            Ended(sequence.item.key, reason, detail, sequence.speculation.report())
        )
        self._forget(sequence)

    def _forget(self, sequence: Sequence) -> None:
        if sequence.span is not None:
            sequence.span.end({"tandem.output_tokens": len(sequence.output)})
        self._scheduler.remove(sequence)
        if sequence.stage is not Stage.WAITING:
            self._memory.free(sequence.item.key)
        del self._sequences[sequence.item.key]

    def _begin_span(self, sequence: Sequence, name: str) -> None:
        item = sequence.item
        sequence.span = self._tracing.begin(
            name, item.traceparent, {"tandem.request_id": item.request_id}
        )

    def _note_load(self) -> None:
        sequences = self._sequences.values()
        sending = [sequence for sequence in sequences if sequence.stage is Stage.SENDING]
        reading = (Stage.WAITING, Stage.PREFILLING)
        self._events.load = self._load.news(
            self._clock_s(),
            _LOAD_NEWS_S,
            running_requests=len(sequences),
            decoding_requests=self._scheduler.decoding,
            waiting_prefill_tokens=sum(
                sequence.unread_tokens for sequence in sequences if sequence.stage in reading
            ),
            link_bytes_in_flight=sum(
                self._load.state_bytes(sequence.context_tokens) for sequence in sending
            ),
        )

    def _note_credits(self) -> None:
        credits = self.credits
        if credits != self._last_credits:
            self._last_credits = credits
            self._events.credits = credits
