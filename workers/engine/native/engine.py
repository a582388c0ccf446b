"""The native engine: one step at a time, from waiting commands to new tokens.

A step polls hand-offs, reads prompt chunks within the token budget, and decodes one window (the
last token and its drafts) for every request that is ready. Single-threaded and without a clock of
its own. Whose memory may be freed when is for `RequestHandoffs.end` to say.
"""

from __future__ import annotations

from collections.abc import Callable

from protos.tandem.v1.common_pb2 import REASON_DRAINING
from workers.engine.commands import (
    Cancel,
    Command,
    Drain,
    Migrate,
    Prefill,
    Renew,
    Reserve,
    WorkItem,
)
from workers.engine.events import Credits, PrefillDone, StepEvents, TokenRow
from workers.engine.load import LOAD_NEWS_S, LoadMeter
from workers.engine.native.decoder import Decoder
from workers.engine.native.departures import Departures
from workers.engine.native.handoffs import RequestHandoffs
from workers.engine.native.requests import Requests
from workers.engine.native.runner import ModelRunner
from workers.engine.native.scheduler import Scheduler
from workers.engine.native.sequence import Sequence, Stage
from workers.engine.sampling.logprobs import Chosen
from workers.engine.sampling.verify import choose_windows
from workers.parallel.errors import RanksLost
from workers.parallel.group import RankGroup
from workers.state.memory import Hit, StateMemory

# How often a waiting engine looks at its transfers: short against a hand-off, long against a poll.
_TRANSFER_POLL_S = 0.0005
# How often one with nothing to do listens: decode may still ask whether an ended hand-off writes,
# and keeps the memory until it is answered.
_LISTEN_S = 0.2


class NativeEngine:
    """Owns the order in which things happen; requests, memory and hand-offs have owners below."""

    def __init__(
        self,
        runner: ModelRunner,
        decoder: Decoder,
        scheduler: Scheduler,
        memory: StateMemory,
        requests: Requests,
        handoffs: RequestHandoffs,
        departures: Departures,
        load: LoadMeter,
        clock_s: Callable[[], float],
        checkpoint_tokens: int,
        group: RankGroup | None = None,
    ) -> None:
        self._runner = runner
        self._decoder = decoder
        self._scheduler = scheduler
        self._memory = memory
        self._requests = requests
        self._handoffs = handoffs
        self._departures = departures
        self._load = load
        self._clock_s = clock_s
        self._checkpoint_tokens = checkpoint_tokens
        self._group = group
        self._last_credits: Credits | None = None
        self._draining = False
        self._asked_to_drain = False  # and it was not said yet that nothing is left

    @property
    def idle_s(self) -> float:
        """How long the engine may be left alone, if no command comes; 0 not at all."""
        if self._last_credits is None or self._scheduler.busy:
            return 0.0
        return _TRANSFER_POLL_S if len(self._requests) or self._handoffs.busy else _LISTEN_S

    @property
    def credits(self) -> Credits:
        """How much more this engine takes now."""
        memory = self._memory
        return Credits(
            self._requests.free_slots,
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
            case Reserve(item=item, token_ids=token_ids, growth_tokens=growth_tokens):
                sequence = self._accept(item, token_ids)
                if sequence is not None:
                    self._handoffs.reserve(sequence, growth_tokens)
            case Prefill(item=item, token_ids=token_ids, ticket=ticket):
                sequence = self._accept(item, token_ids)
                if sequence is not None:
                    sequence.ticket = ticket
                    self._scheduler.wait(sequence)
            case Cancel(key, reason):
                sequence = self._requests.get(key)
                if sequence is not None:
                    self._handoffs.end(sequence, reason)
            case Renew(key):
                self._handoffs.renew(key)
            case Migrate(key, ticket):
                sequence = self._requests.get(key)
                if sequence is not None:
                    self._departures.order(sequence, ticket)
            case Drain(resume):
                self._draining = self._asked_to_drain = not resume

    def step(self) -> StepEvents:
        """Advance every request once and return what happened since the last step."""
        for sequence in self._handoffs.poll():
            self._begin_decoding(sequence)
        self._departures.advance()
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
        events = self._requests.events
        events.cache = self._memory.take_cache_changes() or None
        if self._asked_to_drain and not len(self._requests) and not self._handoffs.busy:
            self._asked_to_drain, events.drained = False, True
        return self._requests.take_events()

    def on_lost(self, callback: Callable[[RanksLost], object]) -> None:
        """Have `callback` called, in another thread, when another rank of this worker is lost."""
        if self._group is not None:
            self._group.on_lost(callback)

    def audit(self) -> None:
        """Raise PoolError unless every block and slot is free, cached or held by a live request."""
        self._memory.audit()

    def close(self) -> None:
        """Free everything, transfers and other ranks included."""
        self._requests.clear()
        self._handoffs.close()
        if self._group is not None:
            self._group.close()

    def _accept(self, item: WorkItem, token_ids: tuple[int, ...]) -> Sequence | None:
        self._requests.events.taken.append(item.key)
        if self._draining:
            self._requests.refuse(item, REASON_DRAINING, "the worker takes no more work")
            return None
        return self._requests.accept(item, token_ids)

    def _read(self, sequence: Sequence, tokens: int, hit: Hit | None) -> None:
        """Read a chunk, cache the prefix it ends, and after the last one make the first token."""
        if sequence.prefill_started_s is None:
            sequence.prefill_started_s = self._clock_s()
            self._requests.begin_span(sequence, "prefill")
        if hit is not None:
            self._runner.copy(hit.copies)
            if len(sequence.output) == sequence.item.generated_tokens:
                sequence.cached_tokens = hit.tokens
        self._handoffs.open(sequence)
        logits = self._runner.read(sequence, tokens)
        self._cache_prefix(sequence)
        if sequence.unread_tokens:
            self._handoffs.advance(sequence)
            return
        if logits is None:
            if not sequence.prefill_ms:
                self._note_prompt_read(sequence)
            # Read anew: the tokens after the prompt are known, and the last one is to be fed.
            self._go_on(sequence, sequence.output[-1])
            return
        (chosen,) = choose_windows(logits, [[]], [sequence.sampling])
        self._note_prompt_read(sequence)
        if sequence.ticket is None or sequence.sampling.ended is not None:
            self._requests.events.prefill_done.append(
                PrefillDone(sequence.item.key, sequence.prefill_ms, None, sequence.cached_tokens)
            )
        self._emit(sequence, chosen)
        if sequence.item.key in self._requests and sequence.ending is None:
            self._go_on(sequence, chosen[0].token_id)

    def _go_on(self, sequence: Sequence, next_token_id: int) -> None:
        """All is read: decode here, or hand over to whom the ticket names."""
        if sequence.ticket is None:
            self._begin_decoding(sequence)
        else:
            self._handoffs.finish(sequence, next_token_id)

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
        self._requests.begin_span(sequence, "decode")
        self._decoder.begin(sequence)

    def _emit(self, sequence: Sequence, chosen: list[Chosen]) -> None:
        """Report new tokens, and end the request if the last of them ends it."""
        first_index = len(sequence.output) - len(chosen)
        self._requests.events.tokens.append(TokenRow(sequence.item.key, first_index, tuple(chosen)))
        ending = sequence.sampling.ended
        if ending is not None:
            self._handoffs.end(sequence, ending.reason, ending.detail)

    def _note_load(self) -> None:
        requests = self._requests
        sending = [sequence for sequence in requests if sequence.stage is Stage.SENDING]
        reading = (Stage.WAITING, Stage.PREFILLING)
        requests.events.load = self._load.news(
            self._clock_s(),
            LOAD_NEWS_S,
            running_requests=len(requests),
            decoding_requests=self._scheduler.decoding,
            waiting_prefill_tokens=sum(
                sequence.unread_tokens for sequence in requests if sequence.stage in reading
            ),
            link_bytes_in_flight=sum(
                self._load.state_bytes(sequence.context_tokens) for sequence in sending
            ),
        )

    def _note_credits(self) -> None:
        credits = self.credits
        if credits != self._last_credits:
            self._last_credits = credits
            self._requests.events.credits = credits
