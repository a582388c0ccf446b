"""What must be true after every event; checked by tests and by `validate=True`.

Kept out of the state machine so that its code says how the invariants are kept and this says
what they are. Raises AssertionError: a violation is a fault of the router, never of its input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from router.core.instructions import Deliver, Finish, Instruction
from router.core.request import Attempt, Request, State

if TYPE_CHECKING:
    from router.core.lifecycle import Lifecycle

_ENDS = (State.FINISHED, State.CANCELLED, State.FAILED)


def check(lifecycle: Lifecycle, out: Sequence[Instruction]) -> None:
    """Check everything that one event may have broken."""
    _check_queue(lifecycle)
    for request in lifecycle.requests.values():
        _check_request(lifecycle, request)
    for handle, attempt in lifecycle.holdings.attempts.items():
        assert handle == attempt.handle
        _check_attempt(lifecycle, attempt)
    _check_accounts(lifecycle)
    _check_instructions(lifecycle, out)


def _check_queue(lifecycle: Lifecycle) -> None:
    waiting = list(lifecycle.queue)
    assert len(waiting) == len(lifecycle.queue)
    queued = {r.request_id for r in lifecycle.requests.values() if r.state is State.QUEUED}
    assert {r.request_id for r in waiting} == queued, "the queue and the states disagree"


def _check_request(lifecycle: Lifecycle, request: Request) -> None:
    name = request.request_id
    assert lifecycle.requests[name] is request
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
    assert lifecycle.holdings.attempts.get(attempt.handle) is attempt, f"{name} runs nowhere"
    if request.ending is None:
        assert not attempt.decode.closed, f"{name} lives without a decode worker"
    if request.state is State.RESERVED:
        assert attempt.prefill is not None
        assert not attempt.prefill.sent
    if request.state is State.HANDING_OFF:
        assert attempt.prefill is not None
        assert attempt.prefill.closed
    if attempt.prefill_closed and attempt.prefill is not None:
        assert request.tokens.delivered, f"{name} waits for a first token that cannot come"


def _check_attempt(lifecycle: Lifecycle, attempt: Attempt) -> None:
    open_sides = [side for side in attempt.sides if not side.closed]
    assert open_sides, f"handle {attempt.handle} is kept though nobody holds it"
    for side in open_sides:
        view = lifecycle.fleet.get(side.worker_id)
        assert view is not None, f"handle {attempt.handle} is held by a lost worker"
        assert attempt.handle in view.holds
        if not attempt.counts:
            assert side.cancelled, f"handle {attempt.handle} was abandoned without a cancel"


def _check_accounts(lifecycle: Lifecycle) -> None:
    for view in lifecycle.fleet.all():
        assert view.held_tokens == sum(view.holds.values())
        for handle in view.holds:
            attempt = lifecycle.holdings.attempts.get(handle)
            assert attempt is not None, f"{view.worker_id}: credits of {handle} leaked"
            assert attempt.side_of(view.worker_id) is not None


def _check_instructions(lifecycle: Lifecycle, out: Sequence[Instruction]) -> None:
    finished: set[str] = set()
    for instruction in out:
        match instruction:
            case Finish():
                assert instruction.request_id not in finished, "ended twice"
                finished.add(instruction.request_id)
            case Deliver():
                assert instruction.request_id not in finished, "tokens after the end"
            case _:
                assert instruction.worker_id in lifecycle.fleet, "sent to a lost worker"
