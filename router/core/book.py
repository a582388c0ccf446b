"""All that one router remembers, and the moves that every part of the state machine makes with it.

The parts (clients, workers, attempts) each react to their events; ends, retries and accounts must
be the same whoever causes them, so they are here. Audits look at this and at nothing else.
"""

from __future__ import annotations

import math
from collections import deque

from protos.tandem.v1 import common_pb2
from router.core.admission import AdmissionQueue
from router.core.deadlines import Deadlines, Renewals, Silences
from router.core.holdings import Holdings
from router.core.instructions import Finish, Instruction
from router.core.matching import RateMatch
from router.core.placement import Blocked
from router.core.policy import Policy
from router.core.prefix_index import NO_HITS, PrefixIndex
from router.core.reasons import Reason
from router.core.recovery import BLAMELESS, REFUSALS, blames_both, is_worth_a_retry
from router.core.request import Attempt, Cause, Request, State, end_state

# Refusals of one request that are put down to bad luck.
_MOST_REFUSALS = 16


class Book:
    """The requests, the workers, and what is to be done next."""

    def __init__(self, policy: Policy, first_handle: int) -> None:
        self.policy = policy
        self.holdings = Holdings(policy, first_handle)
        self.fleet = self.holdings.fleet
        self.queue = AdmissionQueue(policy)
        self.index = PrefixIndex(policy.index_entries)
        self.match = RateMatch()
        self.blocked: Blocked | None = None  # what the queue's first waits for
        self.requests: dict[str, Request] = {}  # those whose client still waits
        self.deadlines = Deadlines()
        self.patience = Deadlines()  # of those that yield: until when they may wait
        self.renewals = Renewals()
        self.silences = Silences()
        self.history: deque[Request] = deque(maxlen=policy.history)
        self.out: list[Instruction] = []
        self.now_s = -math.inf

    def enter(self, request: Request) -> None:
        """Put a request into the queue for the first time."""
        self._wait(request)
        self.queue.push(request)

    def end(
        self, request: Request, reason: Reason, detail: str, retry_after_s: float | None = None
    ) -> None:
        """End a request for its client; what workers still hold for it is let go."""
        if not request.live:
            return
        self.queue.discard(request)
        request.live = False
        request.move(self.now_s, end_state(reason), Cause.ENDED, reason, detail)
        del self.requests[request.request_id]
        self.history.append(request)
        report = request.report(self.now_s)
        self.out.append(Finish(request.request_id, reason, detail, report, retry_after_s))
        self.drop_migration(request, reason)
        if request.attempt is not None:
            self.out.extend(self.holdings.let_go(request.attempt, reason))
        # Kept for its story only; and without a cycle, so that nobody has to look for it later.
        request.attempt = None
        request.prefix = None
        request.hits = NO_HITS

    def fail(
        self, attempt: Attempt, worker_id: str, reason: Reason, detail: str, *, counts: bool = True
    ) -> None:
        """An attempt failed at a worker: try again, or end the request when that is in vain.

        A worker that only has no room now does not count.
        """
        request = attempt.request
        reason = reason or common_pb2.REASON_ENGINE_ERROR
        if not is_worth_a_retry(reason):
            self.end(request, reason, detail)
            return
        if reason not in BLAMELESS:
            self.blame(attempt, worker_id, reason)
        counts = counts or request.refusals >= _MOST_REFUSALS
        if counts and request.retries >= self.policy.max_retries:
            if request.retries:
                detail = f"attempt {request.retries + 1} failed too: {detail}"
            self.end(request, reason, detail)
            return
        self.drop_migration(request, reason)
        self.out.extend(self.holdings.let_go(attempt, reason))
        request.attempt = None
        request.ending = None
        request.tokens.forget_early()
        request.avoid |= {worker_id}
        if counts:
            request.retries += 1
        else:
            request.refusals += 1
        cause = Cause.REFUSED if reason in REFUSALS else Cause.RETRIED
        request.move(self.now_s, State.QUEUED, cause, reason, detail)
        self._wait(request)
        self.queue.push_front(request)
        self.holdings.room_changed = True

    def drop_migration(self, request: Request, reason: Reason) -> None:
        """A request does not move after all; what the target holds for it is let go."""
        migration, request.migration = request.migration, None
        if migration is not None:
            self.out.extend(self.holdings.let_go(migration.target, reason))

    def blame(self, attempt: Attempt, worker_id: str, reason: Reason) -> None:
        """Count a failure against a worker, and of a hand-off against both."""
        for side in attempt.sides:
            view = self.fleet.get(side.worker_id)
            if view is not None and (side.worker_id == worker_id or blames_both(reason)):
                view.breaker.failed(self.now_s)
                self.fleet.refresh(view)

    def praise(self, worker_id: str) -> None:
        """A worker did what it had to."""
        view = self.fleet.get(worker_id)
        if view is not None and view.breaker.failures:
            view.breaker.succeeded()
            self.fleet.refresh(view)
            self.holdings.room_changed = True

    def _wait(self, request: Request) -> None:
        request.waits_before = self.match.waited_s
