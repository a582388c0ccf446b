"""What clients do, and what time does to them: arrivals, cancels, deadlines, turns."""

from __future__ import annotations

from protos.tandem.v1 import common_pb2
from router.core.book import Book
from router.core.events import CancelRequested, RequestArrived
from router.core.instructions import SendPrefill, SendRenew, SendReserve
from router.core.placement import Ask, Blocked, Candidate, Choice, choose, fits_nowhere
from router.core.request import Cause, Decision, Request, State
from router.core.shedding import Limits, Outflow, longest_wait_s, predicted_wait_s

# How many times longer than expected something may take before it counts as failed.
_PATIENCE = 10.0
_NO_WAITS = (0.0,) * len(Blocked)


class Clients:
    """Takes requests in, refuses what cannot be served in time, and places the rest."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self._limits = Limits(book.policy)
        self._outflow = Outflow()
        self._shut_down = False

    def on_request(self, event: RequestArrived) -> None:
        """A newcomer: refused at once if it would be in vain to wait, else queued."""
        book, policy = self._book, self._book.policy
        if event.request_id in book.requests:
            raise ValueError(f"request id {event.request_id!r} is live: the caller must refuse it")
        target = policy.of_class(event.class_rank)
        request = Request(
            request_id=event.request_id,
            prompt_tokens=event.prompt_tokens,
            max_tokens=event.max_tokens,
            class_rank=min(event.class_rank, len(policy.classes) - 1),
            arrived_s=book.now_s,
            deadline_s=event.deadline_s,
            tenant=event.tenant,
            prefix=event.prefix,
            ttft_s=target.ttft_s,
        )
        read_s = event.prompt_tokens / policy.assumed_prefill_tokens_per_s
        request.start_by_s = book.now_s + target.ttft_s - read_s
        if event.deadline_s is not None:
            request.start_by_s = min(request.start_by_s, event.deadline_s - read_s)
        request.move(book.now_s, State.QUEUED, Cause.ARRIVED)
        book.requests[request.request_id] = request
        if self._shut_down:
            detail = "the router is shutting down"
            book.end(request, common_pb2.REASON_SHUTTING_DOWN, detail)
        elif not book.fleet.has_decode:
            book.end(request, common_pb2.REASON_NO_WORKERS, "no decode worker is connected")
        elif self._finds_place(request):
            book.deadlines.add(request, request.deadline_s)
            # Where nobody waits there is no order to keep.
            if len(book.queue) or not self._goes_at_once(request):
                book.enter(request)
                book.holdings.room_changed = True

    def on_cancel(self, event: CancelRequested) -> None:
        """The client wants no more."""
        request = self._book.requests.get(event.request_id)
        if request is not None:
            self._book.end(request, event.reason, event.detail)

    def on_tick(self) -> None:
        """Time passed: deadlines, leases, breakers."""
        book = self._book
        for request in book.deadlines.expired(book.now_s):
            detail = f"the deadline passed while the request was {request.state}"
            book.end(request, common_pb2.REASON_DEADLINE_EXCEEDED, detail)
        for attempt in book.renewals.due(book.now_s):
            # The right to write into a reservation is leased as the reservation is.
            book.out += [
                SendRenew(side.worker_id, attempt.handle)
                for side in attempt.sides
                if not side.closed
            ]
            migration = attempt.request.migration
            if migration is not None and migration.source.leaving:
                source = migration.source
                book.out.append(SendRenew(source.decode.worker_id, source.handle))
        book.holdings.room_changed = True

    def on_shut_down(self) -> None:
        """Everything ends and nothing is taken any more."""
        self._shut_down = True
        for request in list(self._book.requests.values()):
            detail = "the router is shutting down"
            self._book.end(request, common_pb2.REASON_SHUTTING_DOWN, detail)

    def _goes_at_once(self, request: Request) -> bool:
        self._book.fleet.wake()
        choice = choose(self._book.fleet, self._book.policy, self._ask(request))
        if choice.chosen is not None:
            self._start(request, choice)
        return choice.chosen is not None

    def place_waiting(self) -> None:
        """Let requests leave the queue, whoever's turn it is, as long as they can be taken."""
        book = self._book
        book.blocked = None
        self._give_up()
        if not len(book.queue):
            self._outflow.emptied()
            return
        book.fleet.wake()
        while (request := book.queue.head()) is not None:
            if not book.fleet.has_decode:
                book.blocked = Blocked.DECODE
                return
            version = _version(request)
            if version is not None and version not in book.fleet.versions:
                detail = f"no worker has model version {version} any more"
                book.end(request, common_pb2.REASON_WORKER_LOST, detail)
                continue
            choice = choose(book.fleet, book.policy, self._ask(request))
            if choice.chosen is not None:
                if self._yields(request, choice.chosen):
                    continue
                book.queue.take(request)
                self._outflow.served(request.cost, book.now_s)
                self._start(request, choice)
            elif fits_nowhere(book.fleet, request.prompt_tokens + request.max_tokens):
                detail = (
                    f"prompt_tokens {request.prompt_tokens} + max_tokens {request.max_tokens} "
                    "is more than any decode worker holds; ask for fewer"
                )
                book.end(request, common_pb2.REASON_PROMPT_TOO_LONG, detail)
            else:
                book.blocked = choice.blocked
                self._outflow.filled(book.now_s)
                return
        self._outflow.emptied()

    def _yields(self, request: Request, best: Candidate) -> bool:
        """Whether a request whose turn it is lets others go first: even the best pair would be too
        late for its TTFT target, and others of its lane may still meet theirs."""
        book = self._book
        first_token_s = book.now_s + best.wait_s + best.read_s
        if first_token_s <= request.arrived_s + request.ttft_s or not book.queue.defer(request):
            return False
        request.move(book.now_s, State.QUEUED, Cause.YIELDS)
        book.patience.add(request, request.arrived_s + longest_wait_s(book.policy, request))
        return True

    def _give_up(self) -> None:
        """End those that have yielded for as long as they may wait, but none that was begun, which
        may wait again because its worker was lost."""
        book = self._book
        for request in book.patience.expired(book.now_s):
            if request.state is State.QUEUED and request.placed_s is None:
                wait_s = predicted_wait_s(book.queue, self._outflow.per_s(book.now_s), request)
                longest_s = longest_wait_s(book.policy, request)
                self._refuse(request, longest_s + wait_s, longest_s)

    def _finds_place(self, request: Request) -> bool:
        """Whether a newcomer is queued; if not, it has been told why and when to come again."""
        book = self._book
        retry_s = self._limits.take(request.tenant, request.cost, book.now_s)
        if retry_s > 0.0:
            detail = f"tenant {request.tenant!r} has used up its rate; retry in {retry_s:.1f} s"
            book.end(request, common_pb2.REASON_RATE_LIMITED, detail, retry_s)
            return False
        if not len(book.queue):
            return True
        outflow_per_s = self._outflow.per_s(book.now_s)
        longest_s = longest_wait_s(book.policy, request)
        # Others can make room only for what its own class does not take up already.
        own = book.queue.timely_cost(request.class_rank)
        own_s = own / outflow_per_s if outflow_per_s else 0.0
        if own_s > longest_s:
            self._refuse(request, own_s, longest_s)
            return False
        while (wait_s := predicted_wait_s(book.queue, outflow_per_s, request)) > longest_s:
            victim = book.queue.lowest_below(request.class_rank)
            why = "stricter classes need what there is"
            if victim is None:
                victim = book.queue.latest_of(request.class_rank)
                why = "it cannot be in time any more, and others need what there is"
            if victim is None:
                self._refuse(request, wait_s, longest_s)
                return False
            self._shed(victim, wait_s, why)
        if book.queue.full:
            victim = book.queue.lowest_below(request.class_rank)
            if victim is None and (victim := book.queue.latest_of(request.class_rank)) is not None:
                self._shed(victim, wait_s, "the queue is full, and it cannot be in time any more")
                return True
            if victim is None:
                detail = f"{len(book.queue)} requests are waiting already; retry later"
                retry_s = wait_s or book.policy.of_class(request.class_rank).ttft_s
                book.end(request, common_pb2.REASON_QUEUE_FULL, detail, retry_s)
                return False
            self._shed(victim, wait_s, "the queue is full and a stricter class came")
        return True

    def _refuse(self, request: Request, wait_s: float, longest_s: float) -> None:
        detail = f"it would wait about {wait_s:.1f} s, and may wait {longest_s:.1f} s"
        reason = common_pb2.REASON_OVERLOADED
        self._book.end(request, reason, detail, wait_s - longest_s)

    def _shed(self, victim: Request, wait_s: float, why: str) -> None:
        retry_s = max(wait_s, self._book.policy.of_class(victim.class_rank).ttft_s)
        self._book.end(victim, common_pb2.REASON_OVERLOADED, why, retry_s)

    def _ask(self, request: Request) -> Ask:
        index = self._book.index
        if request.prefix is not None and request.hits_as_of != index.changes:
            request.hits = index.match(request.prefix)
            request.hits_as_of = index.changes
        return Ask(
            read_tokens=request.read_tokens,
            hold_tokens=request.prompt_tokens + request.max_tokens,
            itl_s=self._book.policy.of_class(request.class_rank).itl_s,
            hits=request.hits,
            version=_version(request),
            avoid=request.avoid,
        )

    def _start(self, request: Request, choice: Choice) -> None:
        book, chosen = self._book, choice.chosen
        assert chosen is not None
        waits: tuple[float, ...] = _NO_WAITS
        if request.waits_before:
            pairs = zip(book.match.waited_s, request.waits_before, strict=True)
            waits = tuple(after - before for after, before in pairs)
        request.decide(Decision(book.now_s, chosen, tuple(choice.candidates), waits))
        attempt = book.holdings.open(request, chosen)
        request.attempt = attempt
        if request.placed_s is None:
            request.placed_s = book.now_s
        request.decode_worker = attempt.decode.worker_id
        request.prefill_worker = chosen.prefill or chosen.decode
        view = book.fleet.get(request.decode_worker)
        assert view is not None
        request.version = view.model_version
        to = (attempt.decode.worker_id, attempt.handle, request.request_id)
        generated = tuple(request.tokens.token_ids)
        if attempt.prefill is None:
            request.move(book.now_s, State.PREFILLING, Cause.PLACED_LOCALLY)
            book.out.append(SendPrefill(*to, ticket=None, generated=generated))
        else:
            request.move(book.now_s, State.RESERVED, Cause.PLACED)
            attempt.patience_s = book.policy.silence_s + _PATIENCE * chosen.expected_s
            book.silences.watch(attempt, book.now_s + attempt.patience_s)
            book.out.append(SendReserve(*to, generated=generated))


def _version(request: Request) -> str | None:
    """The model version that must go on with a request: the one that has made its tokens."""
    return request.version if request.tokens.delivered else None


def earliest(*moments_s: float | None) -> float | None:
    """The first of some moments; None when there is none."""
    found: float | None = None
    for moment_s in moments_s:
        if moment_s is not None and (found is None or moment_s < found):
            found = moment_s
    return found
