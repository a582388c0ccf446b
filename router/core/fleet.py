"""All workers that the router has sessions with, and sums over them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from router.core.breaker import Breaker
from router.core.columns import Columns
from router.core.events import Role, WorkerJoined
from router.core.policy import Policy
from router.core.worker_view import WorkerView

_KEPT_BREAKERS = 1024


@dataclass(slots=True, eq=False)
class PoolSums:
    """Of the workers of one role: prefill workers that read and all of them, or decode slots."""

    busy: float = 0.0
    capacity: float = 0.0


class Fleet:
    """All connected workers, and per model version the columns that placement searches."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._workers: dict[str, WorkerView] = {}
        self._breakers: dict[str, Breaker] = {}
        self._columns: dict[tuple[str, Role], Columns] = {}
        self._decoders = 0
        self.versions: list[str] = []  # of models that can be decoded
        self._tripped: dict[str, WorkerView] = {}  # their breakers are, or were, open
        self.now_s = 0.0
        # Sums over the workers of a role: see `recount`.
        self.prefill, self.decode = PoolSums(), PoolSums()
        self.link_bytes = 0.0

    def __contains__(self, worker_id: str) -> bool:
        return worker_id in self._workers

    def get(self, worker_id: str) -> WorkerView | None:
        return self._workers.get(worker_id)

    def all(self) -> Iterable[WorkerView]:
        return self._workers.values()

    def of_role(self, role: Role) -> Iterable[WorkerView]:
        return (view for view in self._workers.values() if view.role == role)

    @property
    def has_decode(self) -> bool:
        return self._decoders > 0

    def columns(self, version: str, role: Role) -> Columns | None:
        """The workers of one version and role; None when there are none."""
        return self._columns.get((version, role))

    def join(self, event: WorkerJoined) -> None:
        """Add a worker that holds nothing of ours."""
        breaker = self._breakers.pop(event.worker_id, None) or Breaker(self._policy)
        view = WorkerView(event.worker_id, event.role, event.model_version, self._policy, breaker)
        self._workers[event.worker_id] = view
        self._enter(view)

    def leave(self, worker_id: str) -> WorkerView | None:
        """Take a worker out, with what it held."""
        view = self._workers.pop(worker_id, None)
        if view is not None:
            self._exit(view)
            self._tripped.pop(worker_id, None)
            if view.breaker.failures:
                # It may come back under the same name.
                self._breakers[worker_id] = view.breaker
                if len(self._breakers) > _KEPT_BREAKERS:
                    del self._breakers[next(iter(self._breakers))]
        return view

    def change_role(self, view: WorkerView, role: Role) -> None:
        """A worker that holds nothing has taken another role."""
        self._exit(view)
        view.role = role
        self._enter(view)

    def refresh(self, view: WorkerView) -> None:
        """Bring sums and columns up to date with a worker, whatever has changed."""
        view.refresh(self.now_s)
        self._write(view)
        credits = view.credits
        size = Columns.ANY if credits is None else credits.total_tokens
        ever = -1 if view.draining else size
        if view.breaker.open_until_s is not None:
            self._tripped[view.worker_id] = view
            if view.room_tokens < 0:
                ever = -1
        assert view.columns is not None
        view.columns.limit(view.row, ever, size, view.per_token_s)
        capacity = 1.0 if view.role == "prefill" else float(view.most_slots)
        if capacity != view.capacity:
            self.sums(view.role).capacity += capacity - view.capacity
            view.capacity = capacity

    def recount(self, view: WorkerView) -> None:
        """As `refresh`, where only what the worker holds has changed."""
        if view.breaker.open_until_s is not None:
            self.refresh(view)
            return
        view.refresh(self.now_s)
        self._write(view)

    @property
    def next_probe_s(self) -> float | None:
        """When the next open breaker lets a request by."""
        times = [
            view.breaker.open_until_s
            for view in self._tripped.values()
            if view.breaker.open_until_s is not None and view.breaker.probe is None
        ]
        return min((time for time in times if time > self.now_s), default=None)

    def wake(self) -> None:
        """Bring workers up to date whose breakers only time opens."""
        if not self._tripped:
            return
        for view in list(self._tripped.values()):
            if view.breaker.open_until_s is None:
                del self._tripped[view.worker_id]
            self.refresh(view)

    def sums(self, role: Role) -> PoolSums:
        """Over the workers of a role."""
        return self.prefill if role == "prefill" else self.decode

    def _write(self, view: WorkerView) -> None:
        columns = view.columns
        assert columns is not None
        if view.role == "prefill":
            sums = self.prefill
            busy = 1.0 if view.unread_tokens or view.load.waiting_prefill_tokens else 0.0
            load = view.wait_s
            if view.link_bytes != view.sent_bytes:
                self.link_bytes += view.link_bytes - view.sent_bytes
                view.sent_bytes = float(view.link_bytes)
        else:
            sums = self.decode
            busy = float(len(view.holds))
            load = view.occupancy
        # Much of what happens to a worker changes neither.
        if view.room_tokens != view.written_room or load != view.written_load:
            view.written_room, view.written_load = view.room_tokens, load
            columns.write(view.row, view.room_tokens, load)
        if busy != view.busy:
            sums.busy += busy - view.busy
            view.busy = busy

    def _enter(self, view: WorkerView) -> None:
        key = view.model_version, view.role
        columns = self._columns.get(key)
        if columns is None:
            columns = self._columns[key] = Columns()
            self._note_versions()
        view.columns, view.row = columns, columns.add(view)
        view.written_load = math.nan
        self._decoders += view.role == "decode"
        self.refresh(view)

    def _exit(self, view: WorkerView) -> None:
        sums = self.sums(view.role)
        sums.busy -= view.busy
        sums.capacity -= view.capacity
        self.link_bytes -= view.sent_bytes
        view.busy = view.capacity = view.sent_bytes = 0.0
        key = view.model_version, view.role
        columns = self._columns[key]
        columns.remove(view.row)
        if not len(columns):
            del self._columns[key]
            self._note_versions()
        self._decoders -= view.role == "decode"

    def _note_versions(self) -> None:
        self.versions = sorted(version for version, role in self._columns if role == "decode")
