"""The life of requests as a pure state machine: events and the time in, instructions out.

    queued -> reserved -> prefilling -> handing_off -> decoding -> finished | cancelled | failed

While its worker is emptied a request is `migrating`, and then decodes again, elsewhere or not. A
failed attempt leads back to queued, with the tokens made so far. It promises: every request ends
exactly once; its tokens reach the client in order, none twice and none left out, although they
come over several streams; every worker that was given something is told when it is no longer
wanted; nothing is ever sent to a worker that is gone. `validate=True` audits all of that after
each event. Everything replays: the same events at the same times give the same instructions.
"""

from __future__ import annotations

from router.core import audit
from router.core.attempts import Attempts
from router.core.book import Book
from router.core.clients import Clients, earliest
from router.core.events import (
    CacheChanged,
    CancelRequested,
    CreditsChanged,
    Drained,
    DrainRequested,
    Ended,
    Event,
    Flipped,
    FlipRequested,
    LoadChanged,
    PrefillDone,
    RequestArrived,
    Reserved,
    ShutDown,
    StateArrived,
    Stayed,
    Tick,
    TokensArrived,
    WorkerJoined,
    WorkerLost,
)
from router.core.explain import Explanation, explain
from router.core.instructions import Instruction
from router.core.matching import MatchReport
from router.core.migration import Migrations
from router.core.policy import Policy
from router.core.workforce import Workforce


class Lifecycle:
    """Owns every request of one router; not thread-safe, and never re-entered."""

    def __init__(
        self, policy: Policy | None = None, first_handle: int = 1, validate: bool = False
    ) -> None:
        """`first_handle`: above every handle that the workers have seen from this router."""
        self.book = Book(policy or Policy(), first_handle)
        self.holdings = self.book.holdings
        self.fleet = self.book.fleet
        self.queue = self.book.queue
        self.requests = self.book.requests
        self._migrations = Migrations(self.book)
        self._attempts = Attempts(self.book, self._migrations)
        self._workforce = Workforce(self.book, self._attempts, self._migrations)
        self._clients = Clients(self.book)
        self._validate = validate

    @property
    def next_deadline_s(self) -> float | None:
        """When the next Tick is due, at the latest."""
        book = self.book
        probe_s = book.fleet.next_probe_s if len(book.queue) else None
        return earliest(
            book.deadlines.next_s,
            book.patience.next_s,
            book.renewals.next_s,
            book.silences.next_s,
            self._workforce.gives_up_s,
            self._migrations.next_s,
            probe_s,
        )

    @property
    def match(self) -> MatchReport:
        """How well the rates of prefill, link and decode match."""
        return self.book.match.report()

    def explain(self, request_id: str) -> Explanation | None:
        """The story of a live request or of one that ended not too many requests ago; without an
        id, of the last that ended."""
        if not request_id:
            return explain(self.book.history[-1]) if self.book.history else None
        request = self.requests.get(request_id) or next(
            (old for old in reversed(self.book.history) if old.request_id == request_id), None
        )
        return None if request is None else explain(request)

    def handle(self, event: Event, now_s: float) -> list[Instruction]:
        """Take one event in; returns what must be done about it, in order."""
        book = self.book
        if now_s != book.now_s:
            fleet = book.fleet
            prefill, decode = fleet.prefill, fleet.decode
            book.match.advance(
                now_s,
                (prefill.busy, prefill.capacity),
                (decode.busy, decode.capacity),
                fleet.link_bytes,
                book.blocked,
            )
            book.now_s = fleet.now_s = now_s
        book.out = []
        self._dispatch(event)
        if book.holdings.room_changed:
            book.holdings.room_changed = False
            self._migrations.advance()
            self._clients.place_waiting()
        if self._validate:
            audit.check(book)
        return book.out

    def _dispatch(self, event: Event) -> None:
        # The most frequent first.
        match event:
            case TokensArrived():
                self._attempts.on_tokens(event)
            case LoadChanged():
                self._workforce.on_load(event)
            case CreditsChanged():
                self._workforce.on_credits(event)
            case RequestArrived():
                self._clients.on_request(event)
            case Reserved():
                self._attempts.on_reserved(event)
            case PrefillDone():
                self._attempts.on_prefill_done(event)
            case StateArrived():
                self._attempts.on_state_arrived(event)
            case Ended():
                self._attempts.on_ended(event)
            case CacheChanged():
                self._workforce.on_cache(event)
            case Stayed():
                self._attempts.on_stayed(event)
            case CancelRequested():
                self._clients.on_cancel(event)
            case WorkerJoined():
                self._workforce.on_joined(event)
            case WorkerLost():
                self._workforce.on_lost(event)
            case DrainRequested():
                self._workforce.on_drain_requested(event)
            case Drained():
                self._workforce.on_drained(event)
            case FlipRequested():
                self._workforce.on_flip_requested(event)
            case Flipped():
                self._workforce.on_flipped(event)
            case Tick():
                self._attempts.end_silent()
                self._clients.on_tick()
                self._workforce.give_up_waiting()
            case ShutDown():
                self._clients.on_shut_down()
