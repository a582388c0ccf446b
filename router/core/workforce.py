"""Workers as such: who comes and goes, what each can take, and who is to drain or change its role.

Drain: no new work goes to the worker, and what it decodes moves to others that can take it; when
it holds nothing of any router it says so and can be taken away. Flip: drain, then take the other
role with the weights that are loaded, then work again.
"""

from __future__ import annotations

from typing import Literal

from protos.tandem.v1 import common_pb2
from router.core.attempts import Attempts
from router.core.book import Book
from router.core.events import (
    CacheChanged,
    CreditsChanged,
    Drained,
    DrainRequested,
    Flipped,
    FlipRequested,
    LoadChanged,
    WorkerJoined,
    WorkerLost,
)
from router.core.instructions import SendDrain, SendFlip
from router.core.migration import Migrations
from router.core.worker_view import WorkerView

Duty = Literal["serving", "draining", "safe_to_delete", "flipping"]


def duty(view: WorkerView) -> Duty:
    """What a worker is about, for operators."""
    if view.flip_to is not None:
        return "flipping"
    if not view.draining:
        return "serving"
    return "safe_to_delete" if view.drained and not view.holds else "draining"


class Workforce:
    """Keeps the fleet in step with what workers and operators say."""

    def __init__(self, book: Book, attempts: Attempts, migrations: Migrations) -> None:
        self._book = book
        self._attempts = attempts
        self._migrations = migrations
        self._alone_since_s: float | None = None

    @property
    def gives_up_s(self) -> float | None:
        """When those that wait for a decode worker have waited long enough; None: there is one."""
        if self._alone_since_s is None or not len(self._book.queue):
            return None
        return self._alone_since_s + self._book.policy.orphan_grace_s

    def on_joined(self, event: WorkerJoined) -> None:
        """A session stands; what an earlier one of the worker held is gone."""
        self.on_lost(WorkerLost(event.worker_id, "it opened a new session"))
        self._book.fleet.join(event)
        self._note_decoders()

    def on_lost(self, event: WorkerLost) -> None:
        """A worker is gone: what it did goes on elsewhere."""
        book = self._book
        if event.worker_id not in book.fleet:
            return
        book.index.forget(event.worker_id)
        detail = f"worker {event.worker_id} was lost"
        if event.detail:
            detail += f": {event.detail}"
        for attempt in book.holdings.lose(event.worker_id):
            self._attempts.lost(attempt, event.worker_id, detail)
        book.holdings.room_changed = True
        self._note_decoders()

    def on_credits(self, event: CreditsChanged) -> None:
        """News of what a worker takes."""
        view = self._book.fleet.get(event.worker_id)
        if view is None:
            return
        view.take_credits(event)
        if not view.draining:
            view.drained = False
        self._changed(view)

    def on_load(self, event: LoadChanged) -> None:
        """News of how busy a worker is."""
        view = self._book.fleet.get(event.worker_id)
        if view is not None:
            view.take_load(event)
            self._changed(view)

    def on_cache(self, event: CacheChanged) -> None:
        """News of what a worker has cached."""
        if event.worker_id in self._book.fleet:
            self._book.index.apply(event)

    def on_drain_requested(self, event: DrainRequested) -> None:
        """An operator wants a worker to go, or to stay after all."""
        view = self._book.fleet.get(event.worker_id)
        if view is None:
            return
        view.asked_to_drain, view.drained, view.flip_to = not event.resume, False, None
        self._book.out.append(SendDrain(event.worker_id, event.resume))
        self._changed(view)

    def on_drained(self, event: Drained) -> None:
        """A worker holds nothing any more, of any router."""
        view = self._book.fleet.get(event.worker_id)
        if view is None:
            return
        view.drained = True
        if view.flip_to is not None:
            self._book.out.append(SendFlip(view.worker_id, view.flip_to))

    def on_flip_requested(self, event: FlipRequested) -> None:
        """A worker is to take the other role: it drains first."""
        view = self._book.fleet.get(event.worker_id)
        if view is None or view.role == event.role:
            return
        view.asked_to_drain, view.drained = True, False
        view.flip_to, view.flip_problem = event.role, ""
        view.flip_reason = common_pb2.REASON_UNSPECIFIED
        self._book.out.append(SendDrain(event.worker_id))
        self._changed(view)

    def on_flipped(self, event: Flipped) -> None:
        """A worker has taken a role, or says why not; it works again either way."""
        book = self._book
        view = book.fleet.get(event.worker_id)
        if view is None:
            return
        view.flip_to, view.flip_problem, view.flip_reason = None, event.detail, event.reason
        view.drained = view.asked_to_drain = False
        if event.reason != common_pb2.REASON_UNSPECIFIED:
            book.out.append(SendDrain(event.worker_id, resume=True))
        if view.role != event.role and not view.holds:
            # It says what it takes in its new role when it takes work again.
            view.credits = None
            book.fleet.change_role(view, event.role)
        self._changed(view)
        self._note_decoders()

    def give_up_waiting(self) -> None:
        """End what waits for a decode worker that does not come."""
        book, due_s = self._book, self.gives_up_s
        if due_s is None or book.now_s < due_s:
            return
        detail = f"no decode worker came back within {book.policy.orphan_grace_s:g} s"
        for request in list(book.queue):
            lost = request.transitions[-1]
            if lost.reason == common_pb2.REASON_WORKER_LOST:
                book.end(request, lost.reason, f"{lost.detail}; {detail}")
            else:
                book.end(request, common_pb2.REASON_NO_WORKERS, detail)

    def _changed(self, view: WorkerView) -> None:
        self._migrations.note(view)
        self._book.fleet.refresh(view)
        self._book.holdings.room_changed = True

    def _note_decoders(self) -> None:
        book = self._book
        if book.fleet.has_decode:
            self._alone_since_s = None
        elif self._alone_since_s is None:
            self._alone_since_s = book.now_s
        book.holdings.room_changed = True
