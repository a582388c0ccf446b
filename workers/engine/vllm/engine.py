"""The rules of a vLLM worker: what commands ask of vLLM, and what its steps mean for requests.

vLLM schedules, batches and pulls; this keeps the account of what was taken in, so that routers get
the credits, ends and hand-offs that every engine gives. It owns no socket, no task and no clock.

The hand-off is pulled. Decode reserves a place and says in the ticket where it listens; prefill
has vLLM keep the state of the prompt and sends an offer there; decode gives the request to vLLM,
which reads the state and renews the lease on it, and answers when the first token shows that it is
here. A state that nobody will read is let go of through decode, as vLLM's connector wants it, and
without a decode worker vLLM's own lease ends.
"""

from __future__ import annotations

from protos.tandem.v1.common_pb2 import (
    REASON_DRAINING,
    REASON_ENGINE_ERROR,
    REASON_INVALID_ARGUMENT,
    REASON_LEASE_EXPIRED,
    REASON_LENGTH,
    REASON_MANIFEST_MISMATCH,
    REASON_OUT_OF_CAPACITY,
    REASON_STOP_TOKEN,
    REASON_TRANSFER_FAILED,
    REASON_UNSPECIFIED,
    ReasonCode,
)
from protos.tandem.v1.handoff_pb2 import HandoffTicket, PullAnswer, PullMessage, PullOffer
from protos.tandem.v1.inference_pb2 import HandoffReport, SpeculationReport
from workers.engine.acceptance import Problem, malformed, over
from workers.engine.chosen import Chosen
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
from workers.engine.load import LOAD_NEWS_S, LoadMeter, Rate
from workers.engine.surroundings import Surroundings
from workers.engine.vllm.cache_names import CacheNames
from workers.engine.vllm.core import CacheNews, Core, CoreFacts, CoreRequest, CoreRow, CoreStep
from workers.engine.vllm.request import Request, Stage

# What a smaller state takes is the latency of the link and of vLLM's looks at it, not its rate.
_LEAST_MEASURED_BYTES = 1 << 20


class VllmEngine:
    """Owns every request that this worker has accepted."""

    def __init__(
        self,
        around: Surroundings,
        facts: CoreFacts,
        max_requests: int,
        lease_s: float,
        core: Core,
    ) -> None:
        self._identity = around.identity
        self._facts = facts
        self._max_requests = max_requests
        self._lease_s = lease_s
        self._core = core
        self._send = around.send
        self._clock_s = around.clock_s
        self._rng = around.rng
        self._requests: dict[int, Request] = {}
        self._by_name: dict[str, Request] = {}
        # Those with a lease: reservations of decode and offers of prefill, by its end.
        self._leased: dict[int, Request] = {}
        self._held_tokens = 0
        self._kv_share = 0.0
        self._load = LoadMeter(facts.state_bytes_per_token, 0)
        self._pull = Rate()
        self._stepped_s = 0.0
        self._read_s = 0.0
        self._cache = CacheNames(facts.block_tokens, facts.hybrid)
        self._events = StepEvents()
        self._last_credits: Credits | None = None
        self._draining = False
        self._asked_to_drain = False

    @property
    def idle_s(self) -> float | None:
        """When `take_events` must be called even if nothing happens; None: not at all."""
        ends = [request.lease_end_s for request in self._leased.values()]
        return max(0.0, min(ends) - self._clock_s()) if ends else None

    @property
    def working(self) -> bool:
        """Whether vLLM has something to do, and so takes steps."""
        return bool(self._by_name)

    @property
    def credits(self) -> Credits:
        """How much more this worker takes now. vLLM's own figure counts where it is higher than
        our account: it has blocks that nobody here asks for any more, such as unread state."""
        total = self._facts.kv_tokens
        used = max(self._held_tokens, round(self._kv_share * total) if self._requests else 0)
        slots = self._max_requests - len(self._requests)
        return Credits(slots, max(0, total - used), total, self._max_requests, self._draining)

    def handle(self, command: Command) -> None:
        """Apply one command; what comes of it is in the next events."""
        match command:
            case Reserve(item, token_ids):
                self._reserve(item, token_ids)
            case Prefill(item, token_ids, ticket):
                self._prefill(item, token_ids, ticket)
            case Cancel(key, reason):
                request = self._requests.get(key)
                if request is not None:
                    self._end(request, reason)
            case Renew(key):
                if key in self._leased:
                    self._lease(self._requests[key])
            case Migrate(key, ticket):
                if ticket is not None and key in self._requests:
                    # vLLM lets others read a prompt's state, never that of an answer.
                    detail = "vLLM hands over no request in the middle of its answer"
                    self._events.stayed.append(Stayed(key, REASON_DRAINING, detail))
            case Drain(resume):
                self._draining = self._asked_to_drain = not resume

    def arrived(self, data: bytes) -> None:
        """Take the message of another worker."""
        message = PullMessage.FromString(data)
        match message.WhichOneof("about"):
            case "offer":
                self._on_offer(message.reservation, message.offer)
            case "answer":
                self._on_answer(message.reservation, message.answer)

    def cached(self, news: CacheNews) -> None:
        """Take what vLLM says of its prefix cache."""
        self._cache.take(news)

    def stepped(self, step: CoreStep) -> None:
        """Take what one step of vLLM brought."""
        now_s = self._clock_s()
        self._kv_share = step.kv_share
        for state_bytes, seconds in step.pulled:
            self._moved(state_bytes, seconds)
            self._pull.add(state_bytes, seconds)
        tokens = rows = 0
        read_only = True
        for row in step.rows:
            request = self._by_name.get(row.name)
            if request is None:
                continue  # ended here while the step ran
            read_only = read_only and request.stage is Stage.DECODING
            if request.stage is Stage.DECODING:
                rows, tokens = rows + 1, tokens + len(row.chosen)
            self._take(request, row, now_s)
        if rows and read_only and self._stepped_s:
            self._load.decoded(rows, tokens, now_s - self._stepped_s)
        self._stepped_s = now_s if self._by_name else 0.0

    def take_events(self) -> StepEvents:
        """End the leases whose time has come, and return what happened since the last call."""
        now_s = self._clock_s()
        self._expire(now_s)
        events, credits = self._events, self.credits
        if credits != self._last_credits:
            self._last_credits = events.credits = credits
        requests = self._requests.values()
        events.load = self._load.news(
            now_s,
            LOAD_NEWS_S,
            running_requests=len(requests),
            decoding_requests=sum(one.stage is Stage.DECODING for one in requests),
            waiting_prefill_tokens=sum(
                len(one.read_tokens) for one in requests if one.stage is Stage.READING
            ),
            link_bytes_in_flight=sum(
                self._load.state_bytes(len(one.read_tokens))
                for one in requests
                if one.stage in (Stage.OFFERED, Stage.PULLING)
            ),
        )
        events.cache = self._cache.take_changes() or None
        if self._asked_to_drain and not self._requests:
            self._asked_to_drain, events.drained = False, True
        self._events = StepEvents()
        return events

    def _accept(self, item: WorkItem, token_ids: tuple[int, ...], stage: Stage) -> Request | None:
        """Take a request in, or say why not."""
        self._events.taken.append(item.key)
        facts = self._facts
        prompt = token_ids[: len(token_ids) - item.generated_tokens]
        made = token_ids[len(prompt) :]
        blocks = -(-(len(prompt) + item.sampling.max_tokens) // facts.block_tokens)
        held_tokens = blocks * facts.block_tokens
        problem = malformed(item, prompt, made) or self._refusal(token_ids, held_tokens)
        problem = problem or over(item, made)
        if problem is not None:
            self._events.ended.append(Ended(item.key, *problem))
            return None
        request = Request(item, prompt, made, stage, held_tokens, self._clock_s())
        self._requests[item.key] = request
        self._held_tokens += held_tokens
        return request

    def _refusal(self, token_ids: tuple[int, ...], held_tokens: int) -> Problem | None:
        """Why this worker does not take a request now."""
        facts, most = self._facts, self._max_requests
        if self._draining:
            return REASON_DRAINING, "the worker takes no more work"
        if max(token_ids) >= facts.vocab_size:
            # vLLM looks it up all the same, and ends, with all other requests.
            detail = f"token {max(token_ids)} is not one of the model's {facts.vocab_size}"
            return REASON_INVALID_ARGUMENT, detail
        if len(self._requests) >= most:
            return REASON_OUT_OF_CAPACITY, f"all {most} requests that it holds are running"
        if held_tokens > (free := facts.kv_tokens - self._held_tokens):
            return REASON_OUT_OF_CAPACITY, f"{held_tokens} tokens of KV needed, {free} free"
        return None

    def _reserve(self, item: WorkItem, token_ids: tuple[int, ...]) -> None:
        request = self._accept(item, token_ids, Stage.RESERVED)
        if request is None:
            return
        request.reservation = self._rng.getrandbits(64) or 1
        self._lease(request)
        identity = self._identity
        ticket = HandoffTicket(
            reservation=request.reservation,
            worker_id=identity.worker_id,
            model_fingerprint=identity.model_fingerprint,
            epoch=identity.epoch,
            tokens=len(request.read_tokens),
            lease_ms=int(self._lease_s * 1e3),
            pull_address=identity.address,
        )
        self._events.reserved.append(Reserved(item.key, ticket, self._lease_s))

    def _prefill(
        self, item: WorkItem, token_ids: tuple[int, ...], ticket: HandoffTicket | None
    ) -> None:
        request = self._accept(item, token_ids, Stage.READING)
        if request is None:
            return
        # An answer of one token is whole with prefill's.
        if ticket is None or (not request.made and item.sampling.max_tokens == 1):
            self._give(request, request.to_answer())
            return
        identity = self._identity
        theirs = (ticket.model_fingerprint, ticket.epoch, ticket.tokens)
        ours = (identity.model_fingerprint, identity.epoch, len(request.read_tokens))
        if theirs != ours or not ticket.pull_address:
            detail = f"the ticket is for state of (model, epoch, tokens) {theirs}, not {ours}"
            self._end(request, REASON_MANIFEST_MISMATCH, detail)
            return
        request.ticket = ticket
        self._give(request, request.to_read())

    def _give(self, request: Request, order: CoreRequest) -> None:
        self._by_name[order.name] = request
        try:
            self._core.add(order)
        except ValueError as error:
            del self._by_name[order.name]
            request.core_name = ""
            if order.transfer:
                self._core.let_go(order.transfer)
            self._end(request, REASON_INVALID_ARGUMENT, str(error))

    def _lease(self, request: Request) -> None:
        request.lease_end_s = self._clock_s() + self._lease_s
        self._leased[request.key] = request

    def _expire(self, now_s: float) -> None:
        for request in [one for one in self._leased.values() if one.lease_end_s <= now_s]:
            what = "offer of state came" if request.stage is Stage.RESERVED else "worker read it"
            detail = f"no {what} within the {self._lease_s:g} s of its lease"
            self._end(request, REASON_LEASE_EXPIRED, detail)

    def _on_offer(self, reservation: int, offer: PullOffer) -> None:
        """Prefill has read a prompt for one of our reservations."""
        request = next(
            (one for one in self._leased.values() if one.reservation == reservation), None
        )
        problem: Problem | None = None
        if request is None or offer.unwanted:
            problem = REASON_TRANSFER_FAILED, "the reservation is unknown, used or over"
        else:
            identity = self._identity
            sent = (offer.model_fingerprint, offer.epoch, offer.tokens)
            wanted = (identity.model_fingerprint, identity.epoch, len(request.read_tokens))
            if sent != wanted:
                detail = f"state of (model, epoch, tokens) {sent} came, {wanted} was reserved"
                problem = REASON_MANIFEST_MISMATCH, detail
                self._end(request, *problem)
        if request is None or problem is not None:
            self._core.let_go(offer.kv_transfer_params)
            if problem is not None and not offer.unwanted:
                reason, detail = problem
                self._answer(offer.answer_address, reservation, reason=reason, detail=detail)
            return
        del self._leased[request.key]
        request.stage = Stage.PULLING
        request.offer_from = offer.answer_address
        request.offered_s = self._clock_s()
        first = offer.first_token_id if offer.has_first_token else None
        self._give(request, request.to_pull(first, offer.kv_transfer_params))

    def _answer(
        self,
        address: str,
        reservation: int,
        transfer_ms: float = 0.0,
        reason: ReasonCode.ValueType = REASON_UNSPECIFIED,
        detail: str = "",
    ) -> None:
        answer = PullAnswer(transfer_ms=transfer_ms, reason=reason, detail=detail)
        message = PullMessage(reservation=reservation, answer=answer)
        self._send(address, message.SerializeToString())

    def _on_answer(self, reservation: int, answer: PullAnswer) -> None:
        """Decode has what we offered, or does not want it."""
        request = next(
            (
                one
                for one in self._leased.values()
                if one.ticket is not None and one.ticket.reservation == reservation
            ),
            None,
        )
        if request is None:
            return  # cancelled meanwhile
        if answer.reason:
            self._end(request, answer.reason, answer.detail)
            return
        state_bytes = self._load.state_bytes(len(request.read_tokens))
        self._moved(state_bytes, answer.transfer_ms / 1e3)
        report = HandoffReport(
            kv_bytes=state_bytes,
            transfer_ms=answer.transfer_ms,
            handoff_ms=(self._clock_s() - request.offered_s) * 1e3,
        )
        done = PrefillDone(request.key, request.prefill_ms, report, request.cached_tokens)
        self._events.prefill_done.append(done)
        self._forget(request)

    def _moved(self, state_bytes: int, seconds: float) -> None:
        """Measure the link, which routers wait for when it is behind."""
        if state_bytes >= _LEAST_MEASURED_BYTES:
            self._load.sent(state_bytes, seconds)

    def _take(self, request: Request, row: CoreRow, now_s: float) -> None:
        """What a step brought for one request."""
        if row.cached_tokens is not None:
            request.cached_tokens = row.cached_tokens
        if request.ticket is not None:
            self._read(request, row, now_s)
            return
        if request.stage is Stage.PULLING and row.chosen:
            request.stage = Stage.DECODING
            # What vLLM measured of late, of all states together: it does not say it of each.
            state_bytes, rate = self._load.state_bytes(len(request.read_tokens)), self._pull.per_s
            transfer_ms = state_bytes / rate * 1e3 if rate else 0.0
            self._answer(request.offer_from, request.reservation, transfer_ms)
            self._events.state_arrived.append(StateArrived(request.key))
        elif request.stage is Stage.READING and row.chosen:
            self._prompt_read(request, now_s)
            request.stage = Stage.DECODING
            self._events.prefill_done.append(
                PrefillDone(request.key, request.prefill_ms, None, request.cached_tokens)
            )
        if not self._emit(request, row.chosen):
            return
        request.steps += 1
        if row.end is not None:
            report = SpeculationReport(
                steps=row.steps or request.steps, drafted=row.drafted, accepted=row.accepted
            )
            del self._by_name[request.core_name]
            request.core_name = ""
            self._end(request, *_reason(row), report)

    def _emit(self, request: Request, chosen: tuple[Chosen, ...]) -> bool:
        """Report new tokens. False: vLLM chose other tokens than the client has, and was told to
        go on from those."""
        known = request.known
        again = min(len(known) - request.compared, len(chosen))
        if again > 0:
            for choice in chosen[:again]:
                if choice.token_id != known[request.compared]:
                    made = self._made_so_far(request)
                    self._core.abort(request.core_name)
                    del self._by_name[request.core_name]
                    self._give(request, request.to_mend(made))
                    return False
                request.compared += 1
            chosen = chosen[again:]
        if chosen:
            self._events.tokens.append(TokenRow(request.key, request.next_index, chosen))
            request.next_index += len(chosen)
        return True

    def _made_so_far(self, request: Request) -> tuple[int, ...]:
        return request.made or request.known

    def _prompt_read(self, request: Request, now_s: float) -> None:
        """Measure: from acceptance, or from the end of the prompt before it."""
        seconds = now_s - max(request.began_s, self._read_s)
        self._read_s = now_s
        request.prefill_ms = (now_s - request.began_s) * 1e3
        self._load.read(len(request.read_tokens) - request.cached_tokens, seconds)

    def _read(self, request: Request, row: CoreRow, now_s: float) -> None:
        """Prefill: the prompt is read; offer its state to decode."""
        if row.end is None:
            return
        ticket = request.ticket
        assert ticket is not None
        del self._by_name[request.core_name]
        request.core_name = ""
        self._prompt_read(request, now_s)
        if row.end not in ("stop", "length") or not row.transfer or not row.chosen:
            self._end(request, REASON_ENGINE_ERROR, f"vLLM ended the prompt with {row.end}")
            return
        first = row.chosen[0]
        stopped = False
        if not request.made:
            self._events.tokens.append(TokenRow(request.key, 0, (first,)))
            stopped = first.token_id in request.item.sampling.stop_token_ids
        offer = PullOffer(
            answer_address=self._identity.address,
            model_fingerprint=self._identity.model_fingerprint,
            epoch=self._identity.epoch,
            tokens=len(request.read_tokens),
            has_first_token=not request.made,
            first_token_id=first.token_id,
            kv_transfer_params=row.transfer,
            unwanted=stopped,
        )
        message = PullMessage(reservation=ticket.reservation, offer=offer)
        self._send(ticket.pull_address, message.SerializeToString())
        if stopped:
            self._events.prefill_done.append(
                PrefillDone(request.key, request.prefill_ms, None, request.cached_tokens)
            )
            self._end(request, REASON_STOP_TOKEN)
            return
        request.stage = Stage.OFFERED
        request.offered_s = now_s
        self._lease(request)

    def _end(
        self,
        request: Request,
        reason: ReasonCode.ValueType,
        detail: str = "",
        speculation: SpeculationReport | None = None,
    ) -> None:
        self._events.ended.append(Ended(request.key, reason, detail, speculation))
        self._forget(request)

    def _forget(self, request: Request) -> None:
        if self._by_name.pop(request.core_name, None) is not None:
            self._core.abort(request.core_name)
        request.stage = Stage.ENDED
        self._leased.pop(request.key, None)
        del self._requests[request.key]
        self._held_tokens -= request.held_tokens


def _reason(row: CoreRow) -> tuple[ReasonCode.ValueType, str]:
    match row.end:
        case "stop":
            return REASON_STOP_TOKEN, ""
        case "length":
            return REASON_LENGTH, ""
        case _:
            return REASON_ENGINE_ERROR, f"vLLM ended the request with {row.end}"
