"""The router's view of its workers: what each said, and what it was given since.

Credits are as of so many pieces of work that the worker had seen; what was sent later is taken off
again here, so nothing is given twice however long the news takes. The rest is an estimate: how
long the prompts and the state that wait at a worker will take.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from protos.tandem.v1 import common_pb2
from router.core.breaker import Breaker
from router.core.columns import Columns
from router.core.events import CreditsChanged, LoadChanged, Role, WorkerJoined
from router.core.policy import Policy
from router.core.rates import Rate
from router.core.reasons import Reason
from router.core.step_model import StepModel

_LINK_HALF_LIFE_S = 2.0


@dataclass(slots=True, eq=False)
class WorkerView:
    """One connected worker. `holds` maps handles to the tokens they may come to occupy there.

    After any change `Fleet.refresh` must be called, which keeps the sums and columns that
    placement reads.
    """

    worker_id: str
    role: Role
    model_version: str
    policy: Policy
    breaker: Breaker
    credits: CreditsChanged | None = None
    most_slots: int = 0
    holds: dict[int, int] = field(default_factory=dict)
    held_tokens: int = 0
    # It refused work that its credits allowed: wait for news before sending more.
    refused: bool = False
    asked_to_drain: bool = False
    drained: bool = False
    flip_to: Role | None = None
    flip_problem: str = ""
    flip_reason: Reason = common_pb2.REASON_UNSPECIFIED
    load: LoadChanged = LoadChanged("")  # noqa: RUF009 - frozen
    steps: StepModel = field(default_factory=StepModel)
    link: Rate = field(default_factory=lambda: Rate(_LINK_HALF_LIFE_S))
    ranks: Counter[int] = field(default_factory=Counter)  # of classes that are here
    # Work that the credits do not know of: handle -> tokens; and what was sent, in order.
    unseen: dict[int, int] = field(default_factory=dict)
    unseen_tokens: int = 0
    sent: deque[int] = field(default_factory=deque)
    sent_count: int = 0
    # Prompt tokens to be read here, and bytes to be sent from here or to here, by handle.
    unread: dict[int, int] = field(default_factory=dict)
    unread_tokens: int = 0
    on_link: dict[int, int] = field(default_factory=dict)
    link_bytes: int = 0
    # Where the columns have it, and what it adds to the sums of the fleet.
    row: int = -1
    shares: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def draining(self) -> bool:
        """Whether it takes no more work, whoever wanted that."""
        return self.asked_to_drain or (self.credits is not None and self.credits.draining)

    @property
    def total_tokens(self) -> int:
        return 0 if self.credits is None else self.credits.total_tokens

    @property
    def total_slots(self) -> int:
        """Requests that it can hold at most."""
        return self.most_slots

    @property
    def free_slots(self) -> int:
        if self.credits is None:
            return 0
        offered = self.credits.request_slots - len(self.unseen)
        return max(0, min(offered, self.most_slots - len(self.holds)))

    @property
    def free_tokens(self) -> int:
        credits = self.credits
        if credits is None:
            return 0
        free = credits.free_tokens - self.unseen_tokens
        if not self.holds:
            free = max(free, credits.all_free_tokens)
        return max(0, min(free, credits.total_tokens - self.held_tokens))

    @property
    def running(self) -> int:
        """Requests on the worker, those of other routers included."""
        return max(len(self.holds), self.load.running_requests)

    @property
    def prefill_tokens_per_s(self) -> float:
        """How quickly it reads prompts."""
        return self.load.prefill_tokens_per_s or self.policy.assumed_prefill_tokens_per_s

    @property
    def prefill_wait_s(self) -> float:
        """How long the prompts that wait there will take."""
        waiting = max(self.unread_tokens, self.load.waiting_prefill_tokens)
        return waiting / self.prefill_tokens_per_s

    @property
    def link_bytes_per_s(self) -> float:
        """Measured by the worker or by what its hand-offs took; 0: not yet."""
        return self.load.link_bytes_per_s or self.link.per_s()

    def room(self, now_s: float) -> int:
        """The largest request, in tokens, that it takes now; -1 when it takes none."""
        if self.refused or self.draining or self.free_slots <= 0 or self.breaker.blocks(now_s):
            return -1
        return self.free_tokens

    def most_requests(self, itl_s: float) -> int | None:
        """How many requests it decodes within an ITL target and those of the classes it has."""
        for rank in self.ranks:
            itl_s = min(itl_s, self.policy.of_class(rank).itl_s)
        return self.steps.most_requests(itl_s)

    def could_ever_take(self, tokens: int) -> bool:
        """Whether it would fit into an idle worker; yes while its size is unknown."""
        return self.credits is None or self.credits.total_tokens >= tokens

    def take_credits(self, credits: CreditsChanged) -> None:
        """News of what it takes."""
        self.credits = credits
        self.most_slots = max(self.most_slots, credits.request_slots, credits.total_slots)
        self.refused = False
        while self.sent and self.sent_count - len(self.sent) < credits.work_seen:
            self._see(self.sent.popleft())

    def take_load(self, load: LoadChanged) -> None:
        """News of how busy it is."""
        self.load = load
        self.steps.observe(load.step_requests, load.step_ms, load.step_tokens)

    def hold(self, handle: int, tokens: int, class_rank: int) -> None:
        """Give it a request that may come to occupy so many tokens."""
        self.holds[handle] = self.unseen[handle] = tokens
        self.held_tokens += tokens
        self.unseen_tokens += tokens
        self.ranks[class_rank] += 1
        self.breaker.sent(handle)

    def note_sent(self, handle: int) -> None:
        """The work that a handle stands for was sent: its number is the next one."""
        self.sent.append(handle)
        self.sent_count += 1

    def release(self, handle: int, class_rank: int) -> None:
        """It holds nothing for the handle any more."""
        self.held_tokens -= self.holds.pop(handle)
        self._see(handle)
        self.read(handle)
        self.transferred(handle)
        self.ranks[class_rank] -= 1
        if not self.ranks[class_rank]:
            del self.ranks[class_rank]
        self.breaker.released(handle)
        self.refused = False

    def will_read(self, handle: int, tokens: int) -> None:
        """So many tokens of a prompt wait to be read here."""
        self.unread[handle] = tokens
        self.unread_tokens += tokens

    def read(self, handle: int) -> None:
        """The prompt was read."""
        self.unread_tokens -= self.unread.pop(handle, 0)

    def will_transfer(self, handle: int, state_bytes: int) -> None:
        """So many bytes of state will leave or reach the worker."""
        self.on_link[handle] = state_bytes
        self.link_bytes += state_bytes

    def transferred(self, handle: int) -> None:
        """They have."""
        self.link_bytes -= self.on_link.pop(handle, 0)

    def _see(self, handle: int) -> None:
        self.unseen_tokens -= self.unseen.pop(handle, 0)


class Fleet:
    """All connected workers, and per model version the columns that placement searches."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._workers: dict[str, WorkerView] = {}
        self._breakers: dict[str, Breaker] = {}
        self._columns: dict[tuple[str, Role], Columns] = {}
        self._decoders = 0
        self._tripped: dict[str, WorkerView] = {}  # their breakers are, or were, open
        self.now_s = 0.0
        # Sums of the shares of all workers: see `refresh`.
        self.busy = {"prefill": 0.0, "decode": 0.0}
        self.capacity = {"prefill": 0.0, "decode": 0.0}
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

    @property
    def versions(self) -> list[str]:
        """Model versions that can be decoded."""
        return sorted(version for version, role in self._columns if role == "decode")

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
                if len(self._breakers) > 1024:
                    del self._breakers[next(iter(self._breakers))]
        return view

    def change_role(self, view: WorkerView, role: Role) -> None:
        """A worker that holds nothing has taken another role."""
        self._exit(view)
        view.role = role
        self._enter(view)

    def refresh(self, view: WorkerView) -> None:
        """Bring sums and columns up to date with a worker."""
        room = view.room(self.now_s)
        reads = view.role == "prefill"
        size = Columns.ANY if view.credits is None else view.total_tokens
        tripped = view.breaker.open_until_s is not None
        if tripped:
            self._tripped[view.worker_id] = view
        ever = -1 if view.draining or (tripped and room < 0) else size
        wait_s = view.prefill_wait_s
        load = wait_s if reads else len(view.holds) / max(view.total_slots, 1)
        columns = self._columns[view.model_version, view.role]
        columns.write(view.row, room, ever, size, load, 1.0 / view.prefill_tokens_per_s)
        if reads:
            share = (float(bool(view.unread_tokens or view.load.waiting_prefill_tokens)), 1.0)
        else:
            share = (float(len(view.holds)), float(view.total_slots))
        self._count(view, (*share, float(view.link_bytes if reads else 0)))

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
        for view in list(self._tripped.values()):
            if view.breaker.open_until_s is None:
                del self._tripped[view.worker_id]
            self.refresh(view)

    def _count(self, view: WorkerView, shares: tuple[float, float, float]) -> None:
        before, view.shares = view.shares, shares
        self.busy[view.role] += shares[0] - before[0]
        self.capacity[view.role] += shares[1] - before[1]
        self.link_bytes += shares[2] - before[2]

    def _enter(self, view: WorkerView) -> None:
        key = view.model_version, view.role
        columns = self._columns.get(key)
        if columns is None:
            columns = self._columns[key] = Columns()
        view.row = columns.add(view.worker_id)
        self._decoders += view.role == "decode"
        self.refresh(view)

    def _exit(self, view: WorkerView) -> None:
        self._count(view, (0.0, 0.0, 0.0))
        key = view.model_version, view.role
        columns = self._columns[key]
        columns.remove(view.row)
        if not len(columns):
            del self._columns[key]
        self._decoders -= view.role == "decode"
