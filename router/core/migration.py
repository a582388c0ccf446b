"""Requests that go on at another decode worker, with their state, because theirs is to be emptied.

Exists so that draining a worker does not take as long as its answers. The source decodes on while
the target sets memory aside and the KV leaves; tokens come from it until it says that all has left
(Ended, REASON_MIGRATED), which it says after its last token. What the target says before that
waits. Whatever fails on the way costs nothing: the source goes on, or, when it is gone, the request
is read anew elsewhere, from the tokens that its client has.

    decoding -> migrating -> decoding, at the target
                          -> decoding, where it was: it stays
                          -> queued: the source is lost, or its state has left for nobody
"""

from __future__ import annotations

import math

from protos.tandem.v1 import common_pb2
from router.core.book import Book
from router.core.events import Ended, Reserved, StateArrived, Stayed
from router.core.instructions import SendMigrate, SendReserve
from router.core.placement import Blocked, Candidate, soonest
from router.core.reasons import Reason
from router.core.recovery import BLAMELESS
from router.core.request import Attempt, Cause, Decision, Migration, Request, State
from router.core.tokens import Chunk
from router.core.worker_view import WorkerView

# How many of the least loaded decode workers get a closer look.
_LOOKED_AT = 3
# What a request may grow by while it moves, whatever its rate is known to be; and more by this
# factor when it is tried again, since it may have been quicker than that.
_LEAST_GROWTH_TOKENS = 64
_MOST_GROWTH_TOKENS = 512
_GROWTH_FACTOR = 4
# The second try is at once, most likely with another target; each later one waits longer.
_RETRY_S = 0.25


class Migrations:
    """Empties decode workers that take no more work, as far as others can take theirs."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self._emptying: set[str] = set()
        self._retry_s = math.inf

    @property
    def next_s(self) -> float | None:
        """When a move that failed may be tried again."""
        return self._retry_s if self._emptying and not math.isinf(self._retry_s) else None

    def note(self, view: WorkerView) -> None:
        """Something about a worker has changed."""
        if view.draining and view.role == "decode" and view.holds:
            self._emptying.add(view.worker_id)
        else:
            self._emptying.discard(view.worker_id)

    def advance(self) -> None:
        """Let requests leave workers that are to be emptied, where others can take them."""
        book = self._book
        if not self._emptying:
            return
        if self._retry_s <= book.now_s:
            self._retry_s = math.inf
        for worker_id in sorted(self._emptying):
            view = book.fleet.get(worker_id)
            if view is None or not view.holds:
                self._emptying.discard(worker_id)
                continue
            self._empty(view)

    def reserved(self, target: Attempt, event: Reserved) -> None:
        """The target has memory: the source may let go."""
        book, migration = self._book, target.request.migration
        assert migration is not None
        book.renewals.add(target, event.lease_s, book.now_s)
        source = migration.source
        if not source.leaving:
            source.leaving = True
            worker_id = source.decode.worker_id
            book.out.append(SendMigrate(worker_id, source.handle, event.ticket))

    def arrived(self, target: Attempt, event: StateArrived) -> None:
        """The target has accepted the state. Its source may have more to say."""
        migration = target.request.migration
        assert migration is not None
        migration.known_tokens = event.generated_tokens
        target.state_arrived = True
        self._book.holdings.state_moved(target)
        self._book.praise(event.worker_id)

    def wait(self, target: Attempt, chunk: Chunk) -> None:
        """Tokens of the target: those of the source come first."""
        migration = target.request.migration
        assert migration is not None
        migration.early.append(chunk)

    def target_ended(self, target: Attempt, event: Ended) -> None:
        """The target holds nothing any more: it has made the whole answer, or it failed."""
        migration = target.request.migration
        assert migration is not None
        if migration.known_tokens is not None:
            # The source holds nothing either, or will find that out: it says so next.
            migration.ended = event
            return
        self._stay(target.request, event.reason, event.detail)

    def target_lost(self, target: Attempt, detail: str) -> None:
        """The worker that was to go on with a request is gone."""
        self._stay(target.request, common_pb2.REASON_WORKER_LOST, detail)

    def stayed(self, source: Attempt, event: Stayed) -> None:
        """The source could not let a request go and goes on with it."""
        source.leaving = False
        if source.counts and source.request.migration is not None:
            self._stay(source.request, event.reason or common_pb2.REASON_INTERNAL, event.detail)

    def take_over(self, source: Attempt, reason: Reason) -> Migration | None:
        """The source is done with a request: the target goes on, if there is one and nothing is
        missing. None: the request must be read anew."""
        book, request = self._book, source.request
        migration, request.migration = request.migration, None
        if migration is None:
            return None
        known = migration.known_tokens
        if reason != common_pb2.REASON_MIGRATED and known != request.tokens.delivered:
            request.migration = migration
            return None
        target = request.attempt = migration.target
        request.migrations += 1
        request.failed_migrations = 0
        before, request.decode_worker = request.decode_worker, target.decode.worker_id
        state = State.MIGRATING if known is None else State.DECODING
        detail = f"from {before} to {request.decode_worker}"
        request.move(book.now_s, state, Cause.MOVED, reason, detail)
        if known is None:
            target.patience_s = book.policy.silence_s
            book.silences.watch(target, book.now_s + target.patience_s)
        return migration

    def _empty(self, view: WorkerView) -> None:
        """Begin as many moves from a worker as there may be at once."""
        book = self._book
        most = book.policy.migrations_at_once
        attempts = [book.holdings.attempts[handle] for handle in view.holds]
        link_bytes = [
            attempt.request.migration.state_bytes
            for attempt in attempts
            if attempt.counts and attempt.request.migration is not None
        ]
        if len(link_bytes) >= most:
            return
        able = [attempt for attempt in attempts if self._may_leave(attempt, view)]
        # Those with little left may be done by themselves before their turn comes.
        able.sort(key=lambda attempt: (-_left(attempt.request), attempt.handle))
        if able:
            book.fleet.wake()
        for attempt in able[: most - len(link_bytes)]:
            if not self._begin(attempt, view, sum(link_bytes)):
                return

    def _may_leave(self, attempt: Attempt, view: WorkerView) -> bool:
        request, policy = attempt.request, self._book.policy
        if not attempt.counts or attempt.decode.worker_id != view.worker_id:
            return False
        if request.state is not State.DECODING or request.ending is not None or attempt.leaving:
            return False
        if not attempt.prefill_closed or not request.tokens.delivered:
            return False
        if request.failed_migrations > policy.max_retries:
            return False
        if request.migrate_after_s > self._book.now_s:
            self._retry_s = min(self._retry_s, request.migrate_after_s)
            return False
        return _left(request) > policy.migration_least_tokens

    def _begin(self, source: Attempt, view: WorkerView, link_bytes: int) -> bool:
        """Ask the best target to set memory aside; False when there is none now."""
        book, request = self._book, source.request
        candidates = self._candidates(request, view, link_bytes)
        able = [candidate for candidate in candidates if candidate.refused is None]
        if not able:
            return False
        chosen = soonest(able)
        request.decide(Decision(book.now_s, chosen, tuple(candidates), (0.0,) * len(Blocked)))
        target = book.holdings.open_incoming(request, chosen.decode, chosen.state_bytes)
        request.migration = Migration(source, target, chosen.state_bytes)
        detail = f"from {view.worker_id} to {chosen.decode}"
        reason = common_pb2.REASON_DRAINING
        request.move(book.now_s, State.MIGRATING, Cause.LEAVES, reason, detail)
        growth = self._growth_tokens(view) * _GROWTH_FACTOR**request.failed_migrations
        growth = min(growth, _left(request) - 1)
        to = (chosen.decode, target.handle, request.request_id)
        book.out.append(SendReserve(*to, tuple(request.tokens.token_ids), growth))
        return True

    def _growth_tokens(self, view: WorkerView) -> int:
        """How many tokens a request may still make until it has left."""
        load = view.load
        tokens = 0.0
        if load.step_ms > 0.0:
            steps = self._book.policy.migration_growth_s * 1e3 / load.step_ms
            tokens = steps * max(load.step_tokens, 1.0)
        return min(max(math.ceil(tokens), _LEAST_GROWTH_TOKENS), _MOST_GROWTH_TOKENS)

    def _candidates(self, request: Request, source: WorkerView, ahead: int) -> list[Candidate]:
        """The least loaded decode workers that can take a request now."""
        book, load = self._book, source.load
        pool = book.fleet.columns(source.model_version, "decode")
        if pool is None:
            return []
        itl_s = book.policy.of_class(request.class_rank).itl_s
        state_bytes = int(request.read_tokens * load.state_bytes_per_token)
        state_bytes += load.state_bytes_per_request
        candidates = []
        for view in pool.least_loaded(request.prompt_tokens + request.max_tokens, _LOOKED_AT):
            most = view.most_requests(itl_s) if view.steps.limits else None
            if view is source or (most is not None and view.running >= most):
                continue
            rates = [rate for rate in (source.link_rate, view.link_rate) if rate]
            queued = max(ahead, view.link_bytes)
            transfer_s = (queued + state_bytes) / min(rates) if rates else 0.0
            # One hand-off is always let by, however slow the link.
            full = queued and transfer_s > book.policy.link_backlog_s
            candidates.append(
                Candidate(
                    expected_s=transfer_s + view.next_step_s,
                    decode=view.worker_id,
                    prefill=source.worker_id,
                    uncached_tokens=0,
                    wait_s=0.0,
                    read_s=0.0,
                    transfer_s=transfer_s,
                    step_s=view.next_step_s,
                    state_bytes=state_bytes,
                    refused=Blocked.LINK if full else None,
                )
            )
        return candidates

    def _stay(self, request: Request, reason: Reason, detail: str) -> None:
        """Call a move off: the request goes on where it is."""
        book, migration = self._book, request.migration
        assert migration is not None
        source = migration.source
        if reason not in BLAMELESS:
            book.blame(migration.target, migration.target.decode.worker_id, reason)
        book.drop_migration(request, reason)
        if source.leaving:
            book.out.append(SendMigrate(source.decode.worker_id, source.handle, None))
        request.failed_migrations += 1
        request.migrate_after_s = book.now_s + _RETRY_S * (request.failed_migrations - 1)
        request.move(book.now_s, State.DECODING, Cause.STAYS, reason, detail)
        book.holdings.room_changed = True


def _left(request: Request) -> int:
    """Tokens that the answer may still have."""
    return request.max_tokens - request.tokens.delivered
