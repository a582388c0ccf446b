"""What must be true after every event; checked by tests and by `validate=True`.

Kept out of the state machine so that its code says how the invariants are kept and this says
what they are. Raises AssertionError: a violation is a fault of the router, never of its input.
"""

from __future__ import annotations

from router.core.book import Book
from router.core.instructions import Deliver, Finish
from router.core.request import Attempt, Request, State

_ENDS = (State.FINISHED, State.CANCELLED, State.FAILED)


def check(book: Book) -> None:
    """Check everything that one event may have broken."""
    _check_queue(book)
    for request in book.requests.values():
        _check_request(book, request)
    for handle, attempt in book.holdings.attempts.items():
        assert handle == attempt.handle
        _check_attempt(book, attempt)
    _check_accounts(book)
    _check_sums(book)
    _check_instructions(book)


def _check_queue(book: Book) -> None:
    waiting = list(book.queue)
    assert len(waiting) == len(book.queue)
    queued = {r.request_id for r in book.requests.values() if r.state is State.QUEUED}
    assert {r.request_id for r in waiting} == queued, "the queue and the states disagree"


def _check_request(book: Book, request: Request) -> None:
    name = request.request_id
    assert book.requests[name] is request
    assert request.live, f"{name} has ended and is still listed"
    assert request.state not in _ENDS
    assert request.transitions[-1].state is request.state, f"{name}: a move was not recorded"
    assert request.tokens.delivered <= request.max_tokens
    assert not (request.tokens.early_ids and request.tokens.delivered), f"{name}: tokens stuck"
    attempt = request.attempt
    if request.state is State.QUEUED:
        assert attempt is None
        return
    assert attempt is not None
    assert attempt.request is request
    assert book.holdings.attempts.get(attempt.handle) is attempt, f"{name} runs nowhere"
    if request.ending is None:
        assert not attempt.decode.closed, f"{name} lives without a decode worker"
    if request.state is State.RESERVED:
        assert attempt.prefill is not None
        assert not attempt.prefill.sent
    if request.migration is not None:
        assert request.state is State.MIGRATING
        assert request.migration.source is attempt
    if request.state is State.HANDING_OFF:
        assert attempt.prefill is not None
        assert attempt.prefill.closed
    if attempt.prefill_closed:
        assert not attempt.lacks_first_token, f"{name} waits for a token that cannot come"
    assert attempt.base <= request.tokens.delivered
    assert len(request.tokens.token_ids) == request.tokens.delivered
    assert request.retries <= book.policy.max_retries


def _check_attempt(book: Book, attempt: Attempt) -> None:
    open_sides = [side for side in attempt.sides if not side.closed]
    assert open_sides, f"handle {attempt.handle} is kept though nobody holds it"
    for side in open_sides:
        view = book.fleet.get(side.worker_id)
        assert view is not None, f"handle {attempt.handle} is held by a lost worker"
        assert attempt.handle in view.holds
        if not attempt.counts and not attempt.incoming:
            assert side.cancelled, f"handle {attempt.handle} was abandoned without a cancel"


def _check_accounts(book: Book) -> None:
    for view in book.fleet.all():
        held = view.holds.values()
        assert view.held_tokens == sum(one.tokens for one in held)
        assert view.unseen_requests == sum(one.unseen for one in held)
        assert view.unseen_tokens == sum(one.tokens for one in held if one.unseen)
        assert view.unread_tokens == sum(one.unread for one in held)
        assert view.link_bytes == sum(one.link_bytes for one in held)
        assert sum(view.ranks) == len(held)
        for handle in view.holds:
            attempt = book.holdings.attempts.get(handle)
            assert attempt is not None, f"{view.worker_id}: credits of {handle} leaked"
            assert attempt.side_of(view.worker_id) is not None


def _check_sums(book: Book) -> None:
    fleet = book.fleet
    for role in ("prefill", "decode"):
        sums, pool = fleet.sums(role), list(fleet.of_role(role))
        busy, capacity = sum(view.busy for view in pool), sum(view.capacity for view in pool)
        assert abs(sums.busy - busy) < 1e-6, f"the sums of {role} drifted"
        assert abs(sums.capacity - capacity) < 1e-6, f"the sums of {role} drifted"
    assert abs(fleet.link_bytes - sum(view.sent_bytes for view in fleet.all())) < 1.0


def _check_instructions(book: Book) -> None:
    finished: set[str] = set()
    for instruction in book.out:
        match instruction:
            case Finish():
                assert instruction.request_id not in finished, "ended twice"
                finished.add(instruction.request_id)
            case Deliver():
                assert instruction.request_id not in finished, "tokens after the end"
            case _:
                assert instruction.worker_id in book.fleet, "sent to a lost worker"
