"""The life of requests as a pure state machine: events and the time in, instructions out.

    queued -> reserved -> prefilling -> handing_off -> decoding -> finished | cancelled | failed

It promises: every request ends exactly once; its tokens reach the client in order, none twice and
none left out, although they come over two streams; every worker that was given something is told
when it is no longer wanted; nothing is ever sent to a worker that is gone. `validate=True` audits
all of that after each event.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from protos.tandem.v1 import common_pb2
from router.core import audit
from router.core.admission import AdmissionQueue
from router.core.deadlines import Deadlines
from router.core.events import (
    CancelRequested,
    CreditsChanged,
    Ended,
    Event,
    PrefillDone,
    RequestArrived,
    Reserved,
    ShutDown,
    StateArrived,
    Tick,
    TokensArrived,
    WorkerJoined,
    WorkerLost,
)
from router.core.holdings import Holdings
from router.core.instructions import Deliver, Finish, Instruction, SendPrefill, SendReserve
from router.core.placement import Placement, choose, fits_nowhere
from router.core.reasons import WELL, Reason
from router.core.request import Attempt, Cause, Request, State, Transition, end_state
from router.core.tokens import Chunk, TokenGapError


@dataclass(frozen=True, slots=True)
class Explanation:
    """What happened to one request and where."""

    request_id: str
    state: State
    prefill_worker: str
    decode_worker: str
    transitions: tuple[Transition, ...]


class Lifecycle:
    """Owns every request of one router; not thread-safe, and never re-entered."""

    def __init__(
        self,
        queue_limit: int,
        first_handle: int = 1,
        history_limit: int = 1000,
        validate: bool = False,
    ) -> None:
        """`first_handle`: above every handle that the workers have seen from this router."""
        self.holdings = Holdings(first_handle)
        self.fleet = self.holdings.fleet
        self.queue = AdmissionQueue(queue_limit)
        self.requests: dict[str, Request] = {}  # those whose client still waits
        self._deadlines = Deadlines()
        self._history: deque[Request] = deque(maxlen=history_limit)
        self._shut_down = False
        self._validate = validate
        self._out: list[Instruction] = []
        self._now_s = 0.0

    @property
    def next_deadline_s(self) -> float | None:
        """When the next Tick is due, at the latest."""
        return self._deadlines.next_s

    def explain(self, request_id: str) -> Explanation | None:
        """The story of a live request or of one that ended not too many requests ago."""
        request = self.requests.get(request_id) or next(
            (old for old in reversed(self._history) if old.request_id == request_id), None
        )
        if request is None:
            return None
        return Explanation(
            request_id=request_id,
            state=request.state,
            prefill_worker=request.prefill_worker,
            decode_worker=request.decode_worker,
            transitions=tuple(request.transitions),
        )

    def handle(self, event: Event, now_s: float) -> list[Instruction]:
        """Take one event in; returns what must be done about it, in order."""
        self._out = []
        self._now_s = now_s
        match event:
            case TokensArrived():
                self._on_tokens(event)
            case CreditsChanged():
                self._on_credits(event)
            case RequestArrived():
                self._on_request(event)
            case Reserved():
                self._on_reserved(event)
            case PrefillDone():
                self._on_prefill_done(event)
            case StateArrived():
                self._on_state_arrived(event)
            case Ended():
                self._on_ended(event)
            case CancelRequested():
                self._on_cancel(event)
            case WorkerJoined():
                self._on_joined(event)
            case WorkerLost():
                self._on_lost(event)
            case Tick():
                self._on_tick()
            case ShutDown():
                self._on_shut_down()
        if self.holdings.room_changed:
            self.holdings.room_changed = False
            self._place_waiting()
        if self._validate:
            audit.check(self, self._out)
        return self._out

    # Clients and time.

    def _on_request(self, event: RequestArrived) -> None:
        if event.request_id in self.requests:
            raise ValueError(f"request id {event.request_id!r} is live: the caller must refuse it")
        request = Request(
            request_id=event.request_id,
            prompt_tokens=event.prompt_tokens,
            max_tokens=event.max_tokens,
            class_rank=event.class_rank,
            arrived_s=self._now_s,
            deadline_s=event.deadline_s,
        )
        request.move(self._now_s, State.QUEUED, Cause.ARRIVED)
        self.requests[request.request_id] = request
        if self._shut_down:
            self._end(request, common_pb2.REASON_SHUTTING_DOWN, "the router is shutting down")
        elif not self.fleet.has_decode:
            self._end(request, common_pb2.REASON_NO_WORKERS, "no decode worker is connected")
        elif self.queue.full:
            detail = f"{len(self.queue)} requests are waiting already; retry later"
            self._end(request, common_pb2.REASON_QUEUE_FULL, detail)
        else:
            self._deadlines.add(request)
            self.queue.push(request)
            self.holdings.room_changed = True

    def _on_cancel(self, event: CancelRequested) -> None:
        request = self.requests.get(event.request_id)
        if request is not None:
            self._end(request, event.reason, event.detail)

    def _on_tick(self) -> None:
        for request in self._deadlines.expired(self._now_s):
            detail = f"the deadline passed while the request was {request.state}"
            self._end(request, common_pb2.REASON_DEADLINE_EXCEEDED, detail)

    def _on_shut_down(self) -> None:
        self._shut_down = True
        for request in list(self.requests.values()):
            self._end(request, common_pb2.REASON_SHUTTING_DOWN, "the router is shutting down")

    # Placement.

    def _place_waiting(self) -> None:
        while (request := self.queue.head()) is not None:
            placement = choose(self.fleet, request.prompt_tokens, request.max_tokens)
            if placement is not None:
                self.queue.discard(request)
                self._start(request, placement)
            elif fits_nowhere(self.fleet, request.prompt_tokens, request.max_tokens):
                detail = (
                    f"prompt_tokens {request.prompt_tokens} + max_tokens {request.max_tokens} "
                    "is more than any decode worker holds; ask for fewer"
                )
                self._end(request, common_pb2.REASON_PROMPT_TOO_LONG, detail)
            else:
                return

    def _start(self, request: Request, placement: Placement) -> None:
        attempt = self.holdings.open(request, placement)
        request.attempt = attempt
        request.placed_s = self._now_s
        request.decode_worker = request.prefill_worker = attempt.decode.worker_id
        to = (attempt.decode.worker_id, attempt.handle, request.request_id)
        if attempt.prefill is None:
            request.move(self._now_s, State.PREFILLING, Cause.PLACED_LOCALLY)
            self._out.append(SendPrefill(*to, ticket=None))
        else:
            request.prefill_worker = attempt.prefill.worker_id
            request.move(self._now_s, State.RESERVED, Cause.PLACED)
            self._out.append(SendReserve(*to))

    def _requeue(self, attempt: Attempt, detail: str) -> None:
        """Give up an attempt that a worker refused before any token came, and wait anew."""
        request, reason = attempt.request, common_pb2.REASON_OUT_OF_CAPACITY
        self._out.extend(self.holdings.let_go(attempt, reason))
        request.attempt = None
        request.move(self._now_s, State.QUEUED, Cause.REFUSED, reason, detail)
        self.queue.push_front(request)
        self.holdings.room_changed = True

    # Workers as such.

    def _on_joined(self, event: WorkerJoined) -> None:
        self._on_lost(WorkerLost(event.worker_id, "it opened a new session"))
        self.fleet.join(event)

    def _on_credits(self, event: CreditsChanged) -> None:
        view = self.fleet.get(event.worker_id)
        if view is not None:
            view.update(event)
            self.holdings.room_changed = True

    def _on_lost(self, event: WorkerLost) -> None:
        if event.worker_id not in self.fleet:
            return
        detail = f"worker {event.worker_id} was lost"
        if event.detail:
            detail += f": {event.detail}"
        for attempt in self.holdings.lose(event.worker_id):
            request = attempt.request
            if not attempt.counts:
                continue
            needed = attempt.decode.closed or request.state in (State.RESERVED, State.PREFILLING)
            if needed and request.ending is None:
                self._end(request, common_pb2.REASON_WORKER_LOST, detail)
            else:
                self._after_prefill(request, common_pb2.REASON_WORKER_LOST, detail)
        if not self.fleet.has_decode:
            for request in list(self.queue):
                self._end(request, common_pb2.REASON_NO_WORKERS, "the last decode worker was lost")
        self.holdings.room_changed = True

    # What workers say of an attempt.

    def _on_reserved(self, event: Reserved) -> None:
        attempt = self._progressing(event.worker_id, event.handle)
        if attempt is None or attempt.request.state is not State.RESERVED:
            return
        request, prefill = attempt.request, attempt.prefill
        assert prefill is not None
        request.reserved_s = self._now_s
        prefill.sent = True
        request.move(self._now_s, State.PREFILLING, Cause.TICKET)
        self._out.append(
            SendPrefill(prefill.worker_id, event.handle, request.request_id, event.ticket)
        )

    def _on_prefill_done(self, event: PrefillDone) -> None:
        found = self.holdings.find(event.worker_id, event.handle)
        if found is None:
            return  # late, and the worker holds nothing for it any more
        attempt, side = found
        if side is attempt.prefill:
            self.holdings.close(attempt, side)
        if not attempt.counts:
            return
        request = attempt.request
        request.prefill_ms = event.prefill_ms
        request.cached_tokens = event.cached_tokens
        if side is not attempt.prefill:
            return  # it read the prompt for itself
        request.handoff = event.handoff
        if request.state is State.PREFILLING:
            request.move(self._now_s, State.HANDING_OFF, Cause.PREFILL_DONE)
        detail = f"worker {event.worker_id} read the prompt but sent no first token"
        self._after_prefill(request, common_pb2.REASON_ENGINE_ERROR, detail)

    def _on_state_arrived(self, event: StateArrived) -> None:
        attempt = self._progressing(event.worker_id, event.handle)
        if attempt is not None and attempt.request.state in (State.PREFILLING, State.HANDING_OFF):
            attempt.request.move(self._now_s, State.DECODING, Cause.STATE_ARRIVED)

    def _on_ended(self, event: Ended) -> None:
        found = self.holdings.find(event.worker_id, event.handle)
        if found is None:
            return
        attempt, side = found
        view = self.fleet.get(event.worker_id)
        assert view is not None
        # With nothing else of ours on a worker, no room comes free there by waiting.
        room_will_come = len(view.holds) > 1
        self.holdings.close(attempt, side)
        if not attempt.counts:
            return
        request = attempt.request
        request.speculation = event.speculation or request.speculation
        delivered = request.tokens.delivered
        if event.reason == common_pb2.REASON_OUT_OF_CAPACITY and delivered == 0 and room_will_come:
            view.refused = True
            self._requeue(attempt, event.detail)
        elif event.reason not in WELL:
            reason = event.reason or common_pb2.REASON_ENGINE_ERROR
            self._end(request, reason, event.detail)
        elif side is attempt.decode and not attempt.prefill_closed:
            request.ending = (event.reason, event.detail)
        else:
            # Of prefill this means that its first token was the last one.
            request.ending = (event.reason, event.detail)
            detail = f"worker {event.worker_id} ended the request without a token"
            self._after_prefill(request, common_pb2.REASON_ENGINE_ERROR, detail)

    def _after_prefill(self, request: Request, reason: Reason, detail: str) -> None:
        """Prefill says nothing more: go on if its token is there, else fail for this reason."""
        if request.tokens.delivered == 0:
            self._end(request, reason, detail)
        elif request.ending is not None:
            self._end(request, *request.ending)

    # Tokens.

    def _on_tokens(self, event: TokensArrived) -> None:
        attempts, worker_id = self.holdings.attempts, event.worker_id
        token_ids, logprobs = event.token_ids, event.logprobs
        start = 0
        rows = zip(event.handles, event.first_indexes, event.counts, strict=True)
        for handle, first, count in rows:
            end = start + count
            attempt = attempts.get(handle)
            if attempt is None or attempt.side_of(worker_id) is None:
                self._out.extend(self.holdings.cancel_stray(worker_id, handle))
            elif attempt.counts:
                chunk = Chunk(first, token_ids[start:end], logprobs[start:end])
                self._take(attempt, worker_id, chunk)
            start = end

    def _take(self, attempt: Attempt, worker_id: str, chunk: Chunk) -> None:
        request = attempt.request
        if request.state is not State.DECODING and worker_id == attempt.decode.worker_id:
            request.move(self._now_s, State.DECODING, Cause.DECODE_TOKENS)
        try:
            for first, token_ids, logprobs in request.tokens.take(chunk):
                if first == 0:
                    request.first_token_s = self._now_s
                request.last_token_s = self._now_s
                self._out.append(Deliver(request.request_id, first, token_ids, logprobs))
        except TokenGapError as error:
            detail = f"worker {worker_id} sent {error}"
            self._end(request, common_pb2.REASON_ENGINE_ERROR, detail)

    # Ends.

    def _end(self, request: Request, reason: Reason, detail: str) -> None:
        """End a request for its client; what workers still hold for it is let go."""
        if not request.live:
            return
        self.queue.discard(request)
        request.live = False
        request.move(self._now_s, end_state(reason), Cause.ENDED, reason, detail)
        del self.requests[request.request_id]
        self._history.append(request)
        report = request.report(self._now_s)
        self._out.append(Finish(request.request_id, reason, detail, report))
        if request.attempt is not None:
            self._out.extend(self.holdings.let_go(request.attempt, reason))

    def _progressing(self, worker_id: str, handle: int) -> Attempt | None:
        """The attempt that a worker reports progress on; one that nobody wants is cancelled."""
        found = self.holdings.find(worker_id, handle)
        if found is None:
            self._out.extend(self.holdings.cancel_stray(worker_id, handle))
            return None
        return found[0] if found[0].counts else None
