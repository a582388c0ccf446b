"""Workers that come and go: GPUs to run on, cold starts, and those that wait for GPUs (Pending).

Stands where Ray Serve and Kubernetes stand: told how many workers of each kind are wanted, it
starts what is missing and drains what is too much, the emptiest first.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Mapping

from orchestrator.simulator.agenda import Agenda
from orchestrator.simulator.cluster import Cluster
from orchestrator.simulator.worker import Worker
from router.core.events import Role

ROLES: tuple[Role, ...] = ("prefill", "decode")


class Pools:
    """Owns which workers there are."""

    def __init__(
        self,
        cluster: Cluster,
        agenda: Agenda,
        make: Callable[[str, Role], Worker],
        joined: Callable[[Worker], None],
        drain: Callable[[str], None],
    ) -> None:
        """`joined` is told of a worker that serves; `drain` has the router drain one."""
        self._cluster = cluster
        self._agenda = agenda
        self._make = make
        self._joined = joined
        self._drain = drain
        self._numbers = {role: itertools.count() for role in ROLES}
        self.workers: dict[str, Worker] = {}
        self.serving: dict[Role, int] = dict.fromkeys(ROLES, 0)  # those that drain included
        self.wanted: dict[Role, int] = {role: cluster.counts.get(role, 0) for role in ROLES}
        self.starting: dict[Role, int] = dict.fromkeys(ROLES, 0)
        self._pending: deque[Role] = deque()
        self._due: dict[int, Role] = {}
        self._starts = itertools.count()
        self._leaving: set[str] = set()
        self._flipping: dict[str, Role] = {}
        self.gpus = cluster.gpus
        self.gpus_used = 0
        self._gpu_s = 0.0
        self._as_of_s = 0.0

    @property
    def gpu_hours(self) -> float:
        """Of all workers so far, their cold starts included."""
        self._count_gpus(0)
        return self._gpu_s / 3600.0

    def pending(self, role: Role) -> int:
        """Workers that wait for GPUs."""
        return sum(waiting == role for waiting in self._pending)

    def staying(self, role: Role) -> int:
        """Workers of a role that are neither to go nor to take the other role."""
        return len(self._here(role)) - self.flipping(role)

    def flipping(self, role: Role) -> int:
        """Workers that drain to take this role."""
        return sum(to == role for to in self._flipping.values())

    def begin(self) -> None:
        """Have all workers serve at once: a simulation begins with a cluster that is up."""
        for role in ROLES:
            for _ in range(self.wanted[role]):
                self._count_gpus(self._cluster.kinds[role].gpus)
                self._serve(role)

    def reconcile(self) -> None:
        """Start what is missing, drain what is too much."""
        for role in ROLES:
            here = self._here(role)
            have = len(here) + self.starting[role] + self.pending(role)
            for _ in range(self.wanted[role] - have):
                self._pending.append(role)
            surplus = have - self.wanted[role]
            while surplus > 0 and role in self._pending:
                self._pending.remove(role)
                surplus -= 1
            while surplus > 0 and self._call_off(role):
                surplus -= 1
            here.sort(key=lambda worker: (len(worker.jobs), worker.worker_id))
            for worker in here[: max(surplus, 0)]:
                self._leaving.add(worker.worker_id)
                self._drain(worker.worker_id)
        self._start_pending()

    def _here(self, role: Role) -> list[Worker]:
        """Workers that have a role or drain to take it, without those that are to go."""
        return [
            worker
            for name, worker in self.workers.items()
            if self._flipping.get(name, worker.role) == role and name not in self._leaving
        ]

    def choose_to_flip(self, role: Role, count: int) -> list[str]:
        """Name the emptiest workers of the other role, which count as of this one from now on."""
        other: Role = "decode" if role == "prefill" else "prefill"
        here = [one for one in self._here(other) if one.worker_id not in self._flipping]
        here.sort(key=lambda worker: (len(worker.jobs), worker.worker_id))
        chosen = [worker.worker_id for worker in here[:count]]
        self._flipping.update(dict.fromkeys(chosen, role))
        return chosen

    def change_wanted(self, wanted: Mapping[Role, int]) -> None:
        """So many are wanted from now on."""
        if dict(wanted) != self.wanted:
            self.wanted.update(wanted)
        self.reconcile()

    def add_gpus(self, count: int) -> None:
        """Nodes came, or with a negative number went to somebody else once they are free."""
        if self.gpus is not None:
            self.gpus += count
            self._start_pending()

    def remove(self, worker_id: str) -> Worker:
        """A worker is gone; its GPUs are free."""
        worker = self.workers.pop(worker_id)
        self._leaving.discard(worker_id)
        self._flipping.pop(worker_id, None)
        self.serving[worker.role] -= 1
        self._count_gpus(-worker.kind.gpus)
        return worker

    def flipped(self, worker_id: str, before: Role, role: Role) -> None:
        """A worker took another role, and is wanted in it."""
        known = self._flipping.pop(worker_id, None) is not None
        for counts in (self.serving,) if known else (self.serving, self.wanted):
            counts[before] -= 1
            counts[role] += 1

    def not_flipped(self, worker_id: str) -> None:
        """A worker keeps its role; what is wanted is as it was before somebody chose it."""
        role = self._flipping.pop(worker_id, None)
        if role is not None:
            self.wanted[role] -= 1
            self.wanted["decode" if role == "prefill" else "prefill"] += 1
            self.reconcile()

    def drained(self, worker_id: str) -> bool:
        """A worker holds nothing; whether it was drained to go."""
        return worker_id in self._leaving

    def _start_pending(self) -> None:
        while self._pending:
            role = self._pending[0]
            kind = self._cluster.kinds[role]
            if self.gpus is not None and self.gpus_used + kind.gpus > self.gpus:
                return
            self._pending.popleft()
            self._count_gpus(kind.gpus)
            self.starting[role] += 1
            number = next(self._starts)
            self._due[number] = role
            self._agenda.at(self._agenda.now_s + kind.cold_start_s, self._started, number)

    def _call_off(self, role: Role) -> bool:
        """End the youngest start of a role, as Ray Serve does before it stops what serves."""
        number = next((key for key in reversed(self._due) if self._due[key] == role), None)
        if number is None:
            return False
        del self._due[number]
        self.starting[role] -= 1
        self._count_gpus(-self._cluster.kinds[role].gpus)
        return True

    def _started(self, number: int) -> None:
        role = self._due.pop(number, None)
        if role is None:
            return  # it was called off
        self.starting[role] -= 1
        self._serve(role)

    def _serve(self, role: Role) -> None:
        worker = self._make(f"{role}-{next(self._numbers[role])}", role)
        self.workers[worker.worker_id] = worker
        self.serving[role] += 1
        self._joined(worker)

    def _count_gpus(self, more: int) -> None:
        now_s = self._agenda.now_s
        self._gpu_s += self.gpus_used * (now_s - self._as_of_s)
        self._as_of_s = now_s
        self.gpus_used += more
