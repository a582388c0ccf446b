"""The router's view of one worker: what it said, and what it was given since.

Credits are as of so many pieces of work that the worker had seen; what was sent later is taken off
again here, so nothing is given twice however long the news takes. The rest is an estimate: how
long the prompts and the state that wait at the worker will take.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from protos.tandem.v1 import common_pb2
from router.core.breaker import Breaker
from router.core.columns import Columns
from router.core.events import CreditsChanged, LoadChanged, Role
from router.core.policy import Policy
from router.core.rates import Rate
from router.core.reasons import Reason
from router.core.step_model import StepModel

_LINK_HALF_LIFE_S = 2.0
# Tells workers apart of which no step was seen yet: fuller ones are a little worse.
_OCCUPANCY_S = 0.001


@dataclass(slots=True, init=False, eq=False)
class Held:
    """One request at a worker.

    Attributes:
        tokens: that it may come to occupy.
        class_rank: of its class.
        unseen: whether the credits do not know of it yet.
        unread: tokens of its prompt that wait to be read there.
        link_bytes: of its state, to be sent from there or to there.
    """

    tokens: int
    class_rank: int
    unseen: bool
    unread: int
    link_bytes: int

    def __init__(
        self,
        tokens: int,
        class_rank: int,
        unseen: bool = True,
        unread: int = 0,
        link_bytes: int = 0,
    ) -> None:
        self.tokens = tokens
        self.class_rank = class_rank
        self.unseen = unseen
        self.unread = unread
        self.link_bytes = link_bytes


class WorkerView:
    """One connected worker, with what it holds by handle.

    After any change `refresh` must be called, by the fleet, before anything is placed.
    """

    credits: CreditsChanged | None = None
    most_slots: int = 0  # requests that it can hold, as far as was ever said
    # It refused work that its credits allowed: wait for news before sending more.
    refused: bool = False
    asked_to_drain: bool = False
    drained: bool = False
    flip_to: Role | None = None
    flip_problem: str = ""
    flip_reason: Reason = common_pb2.REASON_UNSPECIFIED
    # Sums over what it holds.
    held_tokens: int = 0
    unseen_requests: int = 0
    unseen_tokens: int = 0
    unread_tokens: int = 0
    link_bytes: int = 0
    sent_count: int = 0  # pieces of work that it was sent in all
    # What placement reads, as of the last `refresh`.
    room_tokens: int = -1  # the largest request that it takes now; -1 when it takes none
    wait_s: float = 0.0  # until the prompts that wait there have been read
    link_rate: float = 0.0  # bytes per second; 0: not measured
    next_step_s: float = 0.0  # of a decode step with one more request
    occupancy: float = 0.0  # share of its slots that hold requests of ours
    strictest_s: float = math.inf  # ITL target of the classes that are there
    # Where the columns have it, and what it adds to the sums of the fleet.
    columns: Columns | None = None
    row: int = -1
    written_room: int = -1
    written_load: float = math.nan
    busy: float = 0.0
    capacity: float = 0.0
    sent_bytes: float = 0.0

    def __init__(
        self, worker_id: str, role: Role, model_version: str, policy: Policy, breaker: Breaker
    ) -> None:
        self.worker_id = worker_id
        self.role = role
        self.model_version = model_version
        self.policy = policy
        self.breaker = breaker
        self.holds: dict[int, Held] = {}
        self.ranks = [0] * len(policy.classes)  # requests of each class
        self.sent: deque[int] = deque()  # what was sent and not seen, in order
        self.load = LoadChanged(worker_id)
        self.steps = StepModel()
        self.link = Rate(_LINK_HALF_LIFE_S)
        self.per_token_s = 1.0 / policy.assumed_prefill_tokens_per_s

    @property
    def draining(self) -> bool:
        """Whether it takes no more work, whoever wanted that."""
        return self.asked_to_drain or (self.credits is not None and self.credits.draining)

    @property
    def total_tokens(self) -> int:
        return 0 if self.credits is None else self.credits.total_tokens

    @property
    def free_slots(self) -> int:
        if self.credits is None:
            return 0
        offered = self.credits.request_slots - self.unseen_requests
        return max(0, min(offered, self.most_slots - len(self.holds)))

    @property
    def free_tokens(self) -> int:
        credits = self.credits
        if credits is None:
            return 0
        free = credits.free_tokens - self.unseen_tokens
        if not self.holds and credits.all_free_tokens > free:
            free = credits.all_free_tokens
        left = credits.total_tokens - self.held_tokens
        if left < free:
            free = left
        return free if free > 0 else 0

    @property
    def running(self) -> int:
        """Requests on the worker, those of other routers included."""
        return max(len(self.holds), self.load.running_requests)

    def most_requests(self, itl_s: float) -> int | None:
        """How many requests it decodes within an ITL target and those of the classes it has."""
        return self.steps.most_requests(min(itl_s, self.strictest_s))

    def refresh(self, now_s: float) -> None:
        """Work out what placement reads; often called, so without the detours of properties."""
        credits, held = self.credits, len(self.holds)
        self.room_tokens = -1
        if credits is not None and not (
            self.refused
            or self.asked_to_drain
            or credits.draining
            or credits.request_slots <= self.unseen_requests
            or self.most_slots <= held
            or (self.breaker.open_until_s is not None and self.breaker.blocks(now_s))
        ):
            self.room_tokens = self.free_tokens
        load = self.load
        waiting, running = self.unread_tokens, held
        if load.waiting_prefill_tokens > waiting:
            waiting = load.waiting_prefill_tokens
        if load.running_requests > running:
            running = load.running_requests
        self.wait_s = waiting * self.per_token_s
        late = self.unread_tokens > 0 and self.wait_s > self.policy.prefill_backlog_s
        if late and self.role == "prefill":
            self.room_tokens = -1
        self.occupancy = held / self.most_slots if self.most_slots else 0.0
        self.next_step_s = self.steps.step_s(running + 1) + _OCCUPANCY_S * self.occupancy

    def take_credits(self, credits: CreditsChanged) -> None:
        """News of what it takes."""
        self.credits = credits
        self.most_slots = max(self.most_slots, credits.request_slots, credits.total_slots)
        self.refused = False
        while self.sent and self.sent_count - len(self.sent) < credits.work_seen:
            held = self.holds.get(self.sent.popleft())
            if held is not None:
                self._see(held)

    def take_load(self, load: LoadChanged) -> None:
        """News of how busy it is."""
        self.load = load
        self.steps.observe(load.step_requests, load.step_ms, load.step_tokens)
        rate = load.prefill_tokens_per_s or self.policy.assumed_prefill_tokens_per_s
        self.per_token_s = 1.0 / rate
        self.link_rate = load.link_bytes_per_s or self.link.per_s()

    def note_transfer(self, state_bytes: int, seconds: float) -> None:
        """A hand-off from here or to here took so long."""
        self.link.add(state_bytes, seconds)
        self.link_rate = self.load.link_bytes_per_s or self.link.per_s()

    def hold(self, handle: int, held: Held) -> None:
        """Give it a request."""
        self.holds[handle] = held
        self.held_tokens += held.tokens
        self.unseen_requests += 1
        self.unseen_tokens += held.tokens
        self.unread_tokens += held.unread
        self.link_bytes += held.link_bytes
        rank = held.class_rank
        self.ranks[rank] += 1
        self.strictest_s = min(self.strictest_s, self.policy.classes[rank].itl_s)
        if self.breaker.open_until_s is not None:
            self.breaker.sent(handle)

    def note_sent(self, handle: int) -> None:
        """The work that a handle stands for was sent: its number is the next one."""
        self.sent.append(handle)
        self.sent_count += 1

    def release(self, handle: int) -> None:
        """It holds nothing for the handle any more."""
        self.read(handle)
        self.transferred(handle)
        held = self.holds.pop(handle)
        self._see(held)
        self.held_tokens -= held.tokens
        self.ranks[held.class_rank] -= 1
        if not self.ranks[held.class_rank]:
            left = [rank for rank, count in enumerate(self.ranks) if count]
            targets = (self.policy.classes[rank].itl_s for rank in left)
            self.strictest_s = min(targets, default=math.inf)
        self.breaker.released(handle)
        self.refused = False

    def read(self, handle: int) -> bool:
        """A prompt was read; whether it was still waiting."""
        held = self.holds.get(handle)
        if held is None or not held.unread:
            return False
        self.unread_tokens -= held.unread
        held.unread = 0
        return True

    def transferred(self, handle: int) -> bool:
        """State has been moved; whether it was still under way."""
        held = self.holds.get(handle)
        if held is None or not held.link_bytes:
            return False
        self.link_bytes -= held.link_bytes
        held.link_bytes = 0
        return True

    def _see(self, held: Held) -> None:
        if held.unseen:
            held.unseen = False
            self.unseen_requests -= 1
            self.unseen_tokens -= held.tokens
