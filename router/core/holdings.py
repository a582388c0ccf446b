"""What workers hold for us: which attempts, at whose cost in credits, and when it is given back.

An attempt is known here from the moment it is placed until no worker holds anything for it, which
may be long after its client has gone. The state machine decides; this keeps the accounts.
"""

from __future__ import annotations

from collections import OrderedDict

from protos.tandem.v1 import common_pb2
from router.core.fleet import Fleet
from router.core.instructions import SendCancel
from router.core.placement import Candidate
from router.core.policy import Policy
from router.core.reasons import Reason
from router.core.request import Attempt, Request, Side
from router.core.worker_view import Held, WorkerView

# Cancels of handles that nobody knows: remembered so that a busy worker is told once, not per step.
_STRAY_MEMORY = 4096


class Holdings:
    """Attempts by handle, and the credits that they hold in the fleet."""

    def __init__(self, policy: Policy, first_handle: int) -> None:
        self.fleet = Fleet(policy)
        self.attempts: dict[int, Attempt] = {}
        self.room_changed = False  # something may fit now that did not before
        self._next_handle = first_handle
        self._strays: OrderedDict[tuple[str, int], None] = OrderedDict()

    def open(self, request: Request, candidate: Candidate) -> Attempt:
        """Begin an attempt under a new handle and take the credits it needs."""
        handle = self._next_handle
        self._next_handle += 1
        decode, rank = self._view(candidate.decode), request.class_rank
        uncached, state_bytes = candidate.uncached_tokens, candidate.state_bytes
        held = Held(request.prompt_tokens + request.max_tokens, rank, link_bytes=state_bytes)
        prefill = None
        if candidate.prefill:
            reader = self._view(candidate.prefill)
            reader.hold(handle, Held(request.read_tokens, rank, True, uncached, state_bytes))
            self.fleet.recount(reader)
            prefill = Side(reader.worker_id)
        else:
            held.unread = uncached
        decode.hold(handle, held)
        decode.note_sent(handle)
        self.fleet.recount(decode)
        side = Side(decode.worker_id, sent=True)
        attempt = Attempt(handle, request, side, prefill, request.tokens.delivered)
        self.attempts[handle] = attempt
        return attempt

    def open_incoming(self, request: Request, worker_id: str, state_bytes: int) -> Attempt:
        """As `open`, for an attempt that is to take over the state of the one that runs."""
        handle = self._next_handle
        self._next_handle += 1
        view, tokens = self._view(worker_id), request.prompt_tokens + request.max_tokens
        view.hold(handle, Held(tokens, request.class_rank, link_bytes=state_bytes))
        view.note_sent(handle)
        self.fleet.refresh(view)
        side = Side(worker_id, sent=True)
        attempt = Attempt(handle, request, side, None, request.tokens.delivered, moved=True)
        self.attempts[handle] = attempt
        return attempt

    def send_prefill(self, attempt: Attempt) -> Side:
        """The prefill worker of an attempt is told of it."""
        assert attempt.prefill is not None
        attempt.prefill.sent = True
        self._view(attempt.prefill.worker_id).note_sent(attempt.handle)
        return attempt.prefill

    def prompt_read(self, attempt: Attempt) -> None:
        """The prompt of an attempt does not wait any more."""
        side = attempt.decode if attempt.prefill is None else attempt.prefill
        view = self.fleet.get(side.worker_id)
        if view is not None and view.read(attempt.handle):
            self.fleet.recount(view)

    def state_moved(self, attempt: Attempt) -> None:
        """The state of an attempt is not on the link any more."""
        for side in attempt.sides:
            view = self.fleet.get(side.worker_id)
            if view is not None and view.transferred(attempt.handle):
                self.fleet.recount(view)
                self.room_changed = True

    def find(self, worker_id: str, handle: int) -> tuple[Attempt, Side] | None:
        """What a worker means by a handle; None when it holds nothing by that name."""
        attempt = self.attempts.get(handle)
        side = None if attempt is None else attempt.side_of(worker_id)
        return None if attempt is None or side is None else (attempt, side)

    def close(self, attempt: Attempt, side: Side) -> None:
        """A worker holds nothing for an attempt any more: its credits are free."""
        side.closed = True
        view = self.fleet.get(side.worker_id)
        if view is not None:
            view.release(attempt.handle)
            self.fleet.recount(view)
        if side is attempt.decode:
            self.state_moved(attempt)
        self.room_changed = True
        if all(other.closed for other in attempt.sides):
            del self.attempts[attempt.handle]

    def let_go(self, attempt: Attempt, reason: Reason) -> list[SendCancel]:
        """Cancel at every worker that knows of the attempt; credits come back when it answers."""
        cancels = []
        for side in attempt.sides:
            if side.closed:
                continue
            if side.sent:
                side.cancelled = True
                cancels.append(SendCancel(side.worker_id, attempt.handle, reason))
            else:
                self.close(attempt, side)
        return cancels

    def lose(self, worker_id: str) -> list[Attempt]:
        """Take a worker out; returns the attempts that it had a part in, that part closed."""
        view = self.fleet.leave(worker_id)
        if view is None:
            return []
        touched = []
        for handle in sorted(view.holds):
            attempt = self.attempts[handle]
            side = attempt.side_of(worker_id)
            assert side is not None
            self.close(attempt, side)
            touched.append(attempt)
        return touched

    def cancel_stray(self, worker_id: str, handle: int) -> list[SendCancel]:
        """Stop a worker that works on something nobody wants: told once, not at every step."""
        key = (worker_id, handle)
        if worker_id not in self.fleet or key in self._strays:
            return []
        self._strays[key] = None
        if len(self._strays) > _STRAY_MEMORY:
            self._strays.popitem(last=False)
        return [SendCancel(worker_id, handle, common_pb2.REASON_CANCELLED)]

    def _view(self, worker_id: str) -> WorkerView:
        view = self.fleet.get(worker_id)
        assert view is not None
        return view
