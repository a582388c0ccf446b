"""The simulated engine: accepts work, keeps time, and makes tokens on schedule.

The same commands, events and order of things as the native engine: a step reads prompt chunks and
decodes one token for every request that is ready; what a step makes comes out when its time is
over. It owns no thread, no socket and no clock: time is read through `clock_s`, which may be
virtual, and a hand-off is a notification that `send` carries.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass

from protos.tandem.v1.common_pb2 import (
    REASON_CANCELLED,
    REASON_DRAINING,
    REASON_LEASE_EXPIRED,
    REASON_LENGTH,
    REASON_MANIFEST_MISMATCH,
    REASON_MIGRATED,
    REASON_OUT_OF_CAPACITY,
    REASON_STOP_TOKEN,
    ReasonCode,
)
from protos.tandem.v1.handoff_pb2 import HandoffTicket, Manifest, RankTarget
from protos.tandem.v1.inference_pb2 import HandoffReport, SpeculationReport
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
from workers.engine.events import (
    Credits,
    Ended,
    PrefillDone,
    Reserved,
    StateArrived,
    Stayed,
    StepEvents,
    TokenRow,
)
from workers.engine.load import LOAD_NEWS_S, LoadMeter
from workers.engine.simulated.limits import Limits, problem_with
from workers.engine.simulated.prefixes import Prefixes
from workers.engine.simulated.sequence import Sequence, Stage
from workers.engine.simulated.text import chosen, context_of, extended, next_token
from workers.engine.simulated.times import StepTimes
from workers.engine.surroundings import Surroundings

# Of a step's tokens, the share that prompts get however many requests decode; as in the native one.
_LEAST_PREFILL_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class _Step:
    """The step that runs: who takes part, and when it is over."""

    due_s: float
    decode_s: float
    read_s: float
    rows: list[Sequence]
    chunks: list[tuple[Sequence, int]]


class SimulatedEngine:
    """Owns every request that this worker has accepted."""

    def __init__(
        self,
        around: Surroundings,
        limits: Limits,
        times: StepTimes,
        prefixes: Prefixes,
    ) -> None:
        self._identity = around.identity
        self._limits = limits
        self._times = times
        self._prefixes = prefixes
        self._send = around.send
        self._clock_s = around.clock_s
        self._rng = around.rng
        self._sequences: dict[int, Sequence] = {}
        self._to_read: dict[int, Sequence] = {}
        self._decoding: dict[int, Sequence] = {}
        self._reservations: dict[int, Sequence] = {}
        self._held_tokens = 0
        self._running: _Step | None = None
        # Ends of transfers; those of requests that have gone are passed over.
        self._transfers: list[tuple[float, int, Sequence]] = []
        self._transfer_numbers = itertools.count()
        self._events = StepEvents()
        self._last_credits: Credits | None = None
        fixed = times.state_bytes(0)
        self._load = LoadMeter(times.state_bytes(1) - fixed, fixed)
        self._draining = False
        self._asked_to_drain = False  # and it was not said yet that nothing is left
        self._ordered = False  # told something whose answer is in the credits

    @property
    def idle_s(self) -> float | None:
        """How long the engine may be left alone: 0 not at all, None until the next command."""
        if self._last_credits is None or self._events or self._ordered:
            return 0.0
        if self._running is None and self._busy:
            return 0.0
        dues = [self._transfers[0][0]] if self._transfers else []
        if self._running is not None:
            dues.append(self._running.due_s)
        if (reserved := self._first_reserved()) is not None:
            dues.append(reserved.lease_end_s)
        return max(0.0, min(dues) - self._clock_s()) if dues else None

    @property
    def credits(self) -> Credits:
        """How much more this engine takes now."""
        total, most = self._limits.kv_tokens, self._limits.max_requests
        slots = most - len(self._sequences)
        return Credits(slots, total - self._held_tokens, total, most, self._draining)

    @property
    def _busy(self) -> bool:
        return bool(self._to_read or self._decoding)

    def handle(self, command: Command) -> None:
        """Apply one command; what comes of it is in the events of the next step."""
        match command:
            case Reserve(item, token_ids, growth_tokens):
                self._reserve(item, token_ids, growth_tokens)
            case Prefill(item, token_ids, ticket):
                sequence = self._accept(item, token_ids)
                if sequence is not None:
                    sequence.ticket = ticket
                    sequence.unread_tokens = sequence.state_tokens
                    self._to_read[item.key] = sequence
            case Cancel(key, reason):
                sequence = self._sequences.get(key)
                if sequence is not None:
                    self._end(sequence, reason)
            case Renew(key):
                self._renew(key)
            case Migrate(key, ticket):
                if key in self._sequences:
                    self._migrate(self._sequences[key], ticket)
            case Drain(resume):
                self._draining = self._asked_to_drain = not resume
                self._ordered = True

    def arrived(self, notification: bytes) -> None:
        """Take the notification of another worker: the state of a reservation is here."""
        manifest = Manifest.FromString(notification)
        sequence = self._reservations.get(manifest.reservation)
        if sequence is None:
            return  # cancelled or given up while it was on its way
        identity = self._identity
        made = manifest.made_token_ids
        sent = (manifest.model_fingerprint, manifest.epoch, manifest.tokens - len(made))
        wanted = (identity.model_fingerprint, identity.epoch, sequence.state_tokens)
        if sent != wanted:
            detail = f"state of (model, epoch, tokens) {sent} came for a reservation of {wanted}"
            self._end(sequence, REASON_MANIFEST_MISMATCH, detail)
            return
        del self._reservations[manifest.reservation]
        # Token 0 came to the client from prefill; here it only has to be fed. So did those that
        # another decode worker has made since the reservation.
        for token_id in made if sequence.made_tokens else (manifest.first_token_id,):
            sequence.context = extended(sequence.context, token_id)
            sequence.last_token_id = token_id
            sequence.made_tokens += 1
        self._events.state_arrived.append(StateArrived(sequence.key, sequence.made_tokens))
        self._decode(sequence)

    def step(self) -> StepEvents:
        """Finish what is due, begin what can be begun, and return what happened."""
        now_s = self._clock_s()
        self._ordered = False
        self._expire(now_s)
        begin_s = now_s
        if self._running is not None and self._running.due_s <= now_s:
            finished, self._running = self._running, None
            self._finish(finished)
            # A timer that comes late must not slow the schedule down; a stall is not made up for.
            begin_s = max(finished.due_s, now_s - self._times.step_s(0, len(finished.rows), 0))
        if self._running is None and self._busy:
            self._begin(begin_s)
        self._say_how_it_stands(now_s)
        events, self._events = self._events, StepEvents()
        return events

    def close(self) -> None:
        """Forget everything."""
        for sequence in list(self._sequences.values()):
            self._forget(sequence)
        self._running = None
        self._transfers.clear()

    def _accept(self, item: WorkItem, token_ids: tuple[int, ...]) -> Sequence | None:
        """Take a request in, or say why not."""
        self._events.taken.append(item.key)
        limits = self._limits
        generated = token_ids[len(token_ids) - item.generated_tokens :]
        prompt = token_ids[: len(token_ids) - item.generated_tokens]
        problem = problem_with(item, prompt, generated, len(self._sequences), limits)
        if self._draining:
            problem = REASON_DRAINING, "the worker takes no more work"
        if problem is not None:
            self._events.ended.append(Ended(item.key, *problem))
            return None
        sequence = Sequence(item, prompt, context_of(token_ids), made_tokens=len(generated))
        if generated:
            sequence.last_token_id = generated[-1]
        self._sequences[item.key] = sequence
        return sequence

    def _reserve(self, item: WorkItem, token_ids: tuple[int, ...], growth_tokens: int) -> None:
        sequence = self._accept(item, token_ids)
        if sequence is None:
            return
        if not self._takes_memory(sequence):
            free = self._limits.kv_tokens - self._held_tokens
            detail = f"{sequence.most_tokens} tokens needed, {free} are free"
            self._end(sequence, REASON_OUT_OF_CAPACITY, detail)
            return
        sequence.stage = Stage.RESERVED
        sequence.reservation = self._rng.getrandbits(63)
        sequence.lease_end_s = self._clock_s() + self._limits.lease_s
        self._reservations[sequence.reservation] = sequence
        ticket = HandoffTicket(
            reservation=sequence.reservation,
            worker_id=self._identity.worker_id,
            model_fingerprint=self._identity.model_fingerprint,
            epoch=self._identity.epoch,
            ranks=[RankTarget(agent_name=self._identity.address)],
            tokens=sequence.state_tokens + growth_tokens,
            growth_tokens=growth_tokens,
        )
        self._events.reserved.append(Reserved(item.key, ticket, self._limits.lease_s))

    def _renew(self, key: int) -> None:
        sequence = self._sequences.get(key)
        if sequence is not None and sequence.stage is Stage.RESERVED:
            sequence.lease_end_s = self._clock_s() + self._limits.lease_s
            # Behind all others: the one whose lease ends first stays the first.
            del self._reservations[sequence.reservation]
            self._reservations[sequence.reservation] = sequence

    def _migrate(self, sequence: Sequence, ticket: HandoffTicket | None) -> None:
        """Let a request go on elsewhere: it decodes while what it has is sent, then it pauses."""
        if ticket is None:
            if sequence.leaving:
                self._stay(sequence, REASON_CANCELLED, "the request is to stay")
            return
        tokens, known = sequence.decoded_tokens, ticket.tokens - ticket.growth_tokens
        if sequence.stage is not Stage.DECODING or not known <= tokens <= ticket.tokens:
            detail = f"it has {tokens} tokens decoded, not {known} to {ticket.tokens}"
            self._stay(sequence, REASON_OUT_OF_CAPACITY, detail)
            return
        sequence.ticket, sequence.leaving = ticket, True
        sequence.pause_s = self._clock_s() + self._times.transfer_s(tokens)

    def _pause(self, sequence: Sequence, now_s: float) -> bool:
        """Whether a request stops decoding here, and the last of its state is sent."""
        ticket = sequence.ticket
        assert ticket is not None
        if now_s < sequence.pause_s and sequence.decoded_tokens < ticket.tokens:
            return False
        del self._decoding[sequence.key]
        sequence.stage = Stage.SENDING
        done_s = max(now_s, sequence.pause_s) + self._times.transfer_s(0)
        heapq.heappush(self._transfers, (done_s, next(self._transfer_numbers), sequence))
        return True

    def _stay(self, sequence: Sequence, reason: ReasonCode.ValueType, detail: str) -> None:
        sequence.leaving, sequence.ticket = False, None
        self._events.stayed.append(Stayed(sequence.key, reason, detail))
        if sequence.stage is Stage.SENDING:
            self._decode(sequence)

    def _takes_memory(self, sequence: Sequence) -> bool:
        """Set aside all that a request may come to need, if that much is free."""
        if sequence.held_tokens == 0:
            if sequence.most_tokens > self._limits.kv_tokens - self._held_tokens:
                return False
            sequence.held_tokens = sequence.most_tokens
            self._held_tokens += sequence.held_tokens
        return True

    def _begin(self, begin_s: float) -> None:
        """Put a step together: every request that decodes, and prompts in what they leave."""
        rows = [
            row
            for row in list(self._decoding.values())
            if not row.leaving or not self._pause(row, begin_s)
        ]
        step_tokens = self._limits.step_tokens
        budget = max(step_tokens - len(rows), int(step_tokens * _LEAST_PREFILL_SHARE))
        chunks: list[tuple[Sequence, int]] = []
        for sequence in sorted(self._to_read.values(), key=lambda row: row.urgency):
            # One that finds no memory waits, and those after it, until others have ended.
            if budget <= 0 or not self._takes_memory(sequence):
                break
            if sequence.started_s is None:
                sequence.started_s = begin_s
                sequence.cached_tokens = self._prefixes.longest(sequence.prompt)
                sequence.unread_tokens -= sequence.cached_tokens
            tokens = min(budget, sequence.unread_tokens)
            budget -= tokens
            chunks.append((sequence, tokens))
        if not rows and not chunks:
            return
        read_tokens = sum(tokens for _, tokens in chunks)
        context_tokens = sum(len(row.prompt) + row.made_tokens for row in rows)
        reach = sum(tokens * (row.read_tokens + tokens / 2) for row, tokens in chunks)
        prompt_context = reach / read_tokens if read_tokens else 0.0
        seconds = self._times.step_s(read_tokens, len(rows), context_tokens, prompt_context)
        # Of a mixed step, what decoding alone would take counts as decoding, as natively.
        decode_s = self._times.step_s(0, len(rows), context_tokens, 0.0) if rows else 0.0
        self._running = _Step(begin_s + seconds, decode_s, seconds - decode_s, rows, chunks)

    def _finish(self, step: _Step) -> None:
        if step.rows:
            self._load.decoded(len(step.rows), len(step.rows), step.decode_s)
        for row in step.rows:
            if row.stage is Stage.DECODING:
                self._make_token(row)
        self._load.read(sum(tokens for _, tokens in step.chunks), step.read_s)
        for sequence, tokens in step.chunks:
            if sequence.stage is not Stage.READING:
                continue
            sequence.unread_tokens -= tokens
            if sequence.unread_tokens == 0:
                self._answer(sequence, step.due_s)

    def _answer(self, sequence: Sequence, now_s: float) -> None:
        """All is read: make the first token if there is none, and hand off or go on here."""
        del self._to_read[sequence.key]
        self._prefixes.remember(sequence.prompt)
        assert sequence.started_s is not None
        sequence.prefill_ms = (now_s - sequence.started_s) * 1e3
        if sequence.ticket is not None:
            sequence.stage = Stage.SENDING
        if not sequence.item.generated_tokens:
            self._make_token(sequence)
        if sequence.ticket is None or sequence.stage is Stage.ENDED:
            self._events.prefill_done.append(
                PrefillDone(sequence.key, sequence.prefill_ms, None, sequence.cached_tokens)
            )
        if sequence.stage is Stage.SENDING:
            done_s = now_s + self._times.transfer_s(sequence.state_tokens)
            heapq.heappush(self._transfers, (done_s, next(self._transfer_numbers), sequence))
        elif sequence.stage is not Stage.ENDED:
            self._decode(sequence)

    def _decode(self, sequence: Sequence) -> None:
        sequence.stage = Stage.DECODING
        self._decoding[sequence.key] = sequence

    def _make_token(self, sequence: Sequence) -> None:
        sampling, vocab_size = sequence.item.sampling, self._limits.vocab_size
        token_id = next_token(sequence.context, sampling, vocab_size)
        sequence.context = extended(sequence.context, token_id)
        sequence.last_token_id = token_id
        sequence.made_here.append(token_id)
        row = TokenRow(
            sequence.key, sequence.made_tokens, (chosen(token_id, sampling, vocab_size),)
        )
        self._events.tokens.append(row)
        sequence.made_tokens += 1
        if token_id in sampling.stop_token_ids:
            self._end(sequence, REASON_STOP_TOKEN)
        elif sequence.made_tokens >= sampling.max_tokens:
            self._end(sequence, REASON_LENGTH)

    def _first_reserved(self) -> Sequence | None:
        """The reservation whose lease ends first; all leases are equally long."""
        return next(iter(self._reservations.values()), None)

    def _expire(self, now_s: float) -> None:
        """End the transfers and leases whose time has come."""
        while self._transfers and self._transfers[0][0] <= now_s:
            _, _, sequence = heapq.heappop(self._transfers)
            if sequence.stage is Stage.SENDING:
                self._sent(sequence)
        while (reserved := self._first_reserved()) is not None and reserved.lease_end_s <= now_s:
            detail = f"no state came within the {self._limits.lease_s:g} s of its lease"
            self._end(reserved, REASON_LEASE_EXPIRED, detail)

    def _sent(self, sequence: Sequence) -> None:
        ticket, tokens = sequence.ticket, sequence.state_tokens
        assert ticket is not None
        made: list[int] = []
        if sequence.leaving:
            tokens = sequence.decoded_tokens
            made = sequence.made_since(ticket.tokens - ticket.growth_tokens)
        manifest = Manifest(
            reservation=ticket.reservation,
            model_fingerprint=self._identity.model_fingerprint,
            epoch=self._identity.epoch,
            tokens=tokens,
            first_token_id=sequence.last_token_id,
            made_token_ids=made,
        )
        self._send(ticket.ranks[0].agent_name, manifest.SerializeToString())
        transfer_ms = self._times.transfer_s(tokens) * 1e3
        self._load.sent(self._times.state_bytes(tokens), transfer_ms / 1e3)
        report = HandoffReport(
            kv_bytes=self._times.state_bytes(tokens) - self._times.state_bytes(0),
            mamba_bytes=self._times.state_bytes(0),
            descriptors=1,
            transfer_ms=transfer_ms,
            handoff_ms=transfer_ms,
        )
        if sequence.leaving:
            self._end(sequence, REASON_MIGRATED, handoff=report)
            return
        self._events.prefill_done.append(
            PrefillDone(sequence.key, sequence.prefill_ms, report, sequence.cached_tokens)
        )
        self._forget(sequence)

    def _end(
        self,
        sequence: Sequence,
        reason: ReasonCode.ValueType,
        detail: str = "",
        handoff: HandoffReport | None = None,
    ) -> None:
        decoded = sequence.leaving or sequence.stage is Stage.DECODING
        steps = sequence.decode_steps if decoded else 0
        speculation = SpeculationReport(steps=steps) if steps > 0 else None
        self._events.ended.append(Ended(sequence.key, reason, detail, speculation, handoff))
        self._forget(sequence)

    def _forget(self, sequence: Sequence) -> None:
        sequence.stage = Stage.ENDED
        del self._sequences[sequence.key]
        self._to_read.pop(sequence.key, None)
        self._decoding.pop(sequence.key, None)
        self._reservations.pop(sequence.reservation, None)
        self._held_tokens -= sequence.held_tokens

    def _say_how_it_stands(self, now_s: float) -> None:
        """Credits, load, cache and the end of a drain, where there is news of them."""
        events, credits = self._events, self.credits
        if credits != self._last_credits:
            self._last_credits = events.credits = credits
        sequences = self._sequences
        sending = [row for _, _, row in self._transfers if row.stage is Stage.SENDING]
        events.load = self._load.news(
            now_s,
            LOAD_NEWS_S,
            running_requests=len(sequences),
            decoding_requests=len(self._decoding),
            waiting_prefill_tokens=sum(row.unread_tokens for row in self._to_read.values()),
            link_bytes_in_flight=sum(self._times.state_bytes(row.state_tokens) for row in sending),
        )
        events.cache = self._prefixes.take_changes() or None
        if self._asked_to_drain and not sequences:
            self._asked_to_drain, events.drained = False, True
