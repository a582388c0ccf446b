"""The one queue of the router: bounded, fair, and in order of urgency.

Three levels. Classes share what leaves the queue in proportion to their weights, tenants share what
their class gets in proportion to theirs (weighted fair queueing: whoever would finish first at its
share goes first, the stricter class first among equals). One tenant's requests of a class go by
slack: the time left until prefill must begin for the TTFT target to be met. Those that cannot meet
it any more yield: served first they would make those late that still can, and then everybody is
late (how earliest deadline first collapses under overload; Locke, 1986). They take what the others
of their lane leave, so shares of classes and tenants are as they were. Requests that come back
after a failure go before all others: their clients have been waiting.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterator

from router.core.policy import Policy
from router.core.request import Request


class _Order:
    """Requests, least slack first. Discarded ones are skipped later."""

    __slots__ = ("_heap", "_pushed", "live")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Request]] = []
        self._pushed = 0
        self.live: dict[str, Request] = {}

    def push(self, request: Request) -> None:
        self._pushed += 1
        self.live[request.request_id] = request
        heapq.heappush(self._heap, (request.start_by_s, self._pushed, request))

    def head(self) -> Request:
        while True:
            request = self._heap[0][2]
            if self.live.get(request.request_id) is request:
                return request
            heapq.heappop(self._heap)

    def discard(self, request: Request) -> bool:
        """Whether it was here. Discarded ones are swept out once they are most of the heap."""
        if self.live.get(request.request_id) is not request:
            return False
        del self.live[request.request_id]
        if len(self._heap) > 64 and len(self._heap) > 2 * len(self.live):
            self._heap = [e for e in self._heap if self.live.get(e[2].request_id) is e[2]]
            heapq.heapify(self._heap)
        return True


class _Lane:
    """One tenant's requests of one class: those that can be in time, then those that cannot."""

    __slots__ = ("late", "timely", "turn")

    def __init__(self, turn: float) -> None:
        self.timely = _Order()
        self.late = _Order()
        self.turn = turn  # virtual time at which its share is used up

    @property
    def waits(self) -> bool:
        """Whether it has any."""
        return bool(self.timely.live) or bool(self.late.live)

    def has(self, request: Request) -> bool:
        name = request.request_id
        return self.timely.live.get(name) is request or self.late.live.get(name) is request

    def has_others(self, request: Request) -> bool:
        return self.has(request) and len(self.timely.live) + len(self.late.live) > 1

    def head(self) -> Request:
        return self.timely.head() if self.timely.live else self.late.head()

    def requests(self) -> list[Request]:
        """All of them."""
        return [*self.timely.live.values(), *self.late.live.values()]


class _Class:
    """The lanes of one class, and how much work waits in them, timely and late."""

    __slots__ = ("cost", "lanes", "late_cost", "now", "turn", "weight")

    def __init__(self, weight: float, turn: float) -> None:
        self.weight = weight
        self.turn = turn
        self.lanes: dict[str, _Lane] = {}
        self.now = 0.0  # virtual time of the lanes
        self.cost = 0.0
        self.late_cost = 0.0

    @property
    def waits(self) -> bool:
        """Whether anything waits in it."""
        return any(lane.waits for lane in self.lanes.values())


class AdmissionQueue:
    """Requests that wait for a pair of workers."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._returned: OrderedDict[str, Request] = OrderedDict()
        self._classes: dict[int, _Class] = {}
        self._now = 0.0  # virtual time of the classes
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Request]:
        yield from self._returned.values()
        for rank in sorted(self._classes):
            for lane in self._classes[rank].lanes.values():
                yield from lane.requests()

    @property
    def full(self) -> bool:
        """Whether a newcomer finds no place; those that come back always do."""
        return self._length >= self._policy.queue_limit

    def cost_ahead(self, rank: int) -> tuple[float, float]:
        """(tokens waiting in a class, tokens waiting in all), those that yield with them."""
        own = self._classes.get(rank)
        everything = sum((one.cost + one.late_cost for one in self._classes.values()), 0.0)
        everything += sum((request.cost for request in self._returned.values()), 0.0)
        return (0.0 if own is None else own.cost + own.late_cost), everything

    def timely_cost(self, rank: int) -> float:
        """Tokens waiting in a class that do not yield to a newcomer."""
        own = self._classes.get(rank)
        return 0.0 if own is None else own.cost

    def share(self, rank: int) -> float:
        """What a class gets of what leaves the queue while all that wait go on waiting."""
        weight = self._policy.of_class(rank).weight
        waiting = (one for other, one in self._classes.items() if other != rank and one.waits)
        others = sum((one.weight for one in waiting), 0.0)
        return weight / (weight + others)

    def head(self) -> Request | None:
        """Whose turn it is."""
        if not self._length:
            return None
        if self._returned:
            return next(iter(self._returned.values()))
        chosen = self._turn()
        return None if chosen is None else chosen[2].head()

    def push(self, request: Request) -> None:
        """Add a newcomer."""
        rank, tenant = request.class_rank, request.tenant
        one = self._classes.get(rank)
        if one is None:
            one = self._classes[rank] = _Class(self._policy.of_class(rank).weight, self._now)
        lane = one.lanes.get(tenant)
        if lane is None:
            lane = one.lanes[tenant] = _Lane(one.now)
        # Whoever had nothing to do gains nothing by it.
        if not one.waits:
            one.turn = max(one.turn, self._now)
        if not lane.waits:
            lane.turn = max(lane.turn, one.now)
        lane.timely.push(request)
        one.cost += request.cost
        self._length += 1

    def push_front(self, request: Request) -> None:
        """Take back a request whose attempt failed; its share has been charged already."""
        self._returned[request.request_id] = request
        self._length += 1

    def take(self, request: Request) -> None:
        """The head leaves to be served: its class and tenant have had so much of their shares."""
        one = self._classes.get(request.class_rank)
        lane = None if one is None else one.lanes.get(request.tenant)
        if one is not None and lane is not None and lane.has(request):
            # Virtual time is when whoever is served began, as in start-time fair queueing.
            self._now, one.now = max(self._now, one.turn), max(one.now, lane.turn)
            one.turn += request.cost / one.weight
            lane.turn += request.cost / self._policy.of_tenant(request.tenant).weight
        self.discard(request)

    def defer(self, request: Request) -> bool:
        """A request cannot be in time any more: it yields to those of its lane that can.

        Those that came back after a failure yield to nobody. Returns whether it yields from now on;
        it does not where there is nobody else.
        """
        one = self._classes.get(request.class_rank)
        lane = None if one is None else one.lanes.get(request.tenant)
        if one is None or lane is None or not lane.has_others(request):
            return False
        if not lane.timely.discard(request):
            return False
        lane.late.push(request)
        one.cost -= request.cost
        one.late_cost += request.cost
        return True

    def discard(self, request: Request) -> None:
        """Take a request out, from wherever it stands; nothing happens if it does not wait."""
        if self._returned.pop(request.request_id, None) is not None:
            self._length -= 1
            return
        one = self._classes.get(request.class_rank)
        lane = None if one is None else one.lanes.get(request.tenant)
        if one is None or lane is None:
            return
        if lane.timely.discard(request):
            one.cost -= request.cost
        elif lane.late.discard(request):
            one.late_cost -= request.cost
        else:
            return
        self._length -= 1
        if not lane.waits and lane.turn <= one.now:
            del one.lanes[request.tenant]
        if not one.waits:
            one.cost = one.late_cost = 0.0  # floats add up to nearly nothing
            if one.turn <= self._now:
                del self._classes[request.class_rank]

    def lowest_below(self, rank: int) -> Request | None:
        """Whom to shed for a request of this class: of the least strict class below the one that
        would go last."""
        for other in sorted(self._classes, reverse=True):
            if other <= rank:
                return None
            lanes = self._classes[other].lanes.values()
            late = [request for lane in lanes for request in lane.late.live.values()]
            waiting = late or [request for lane in lanes for request in lane.requests()]
            if waiting:
                return max(waiting, key=_last)
        return None

    def latest_of(self, rank: int) -> Request | None:
        """Of those of a class that yield, the one that would go last."""
        own = self._classes.get(rank)
        if own is None or not own.late_cost:
            return None
        late = [request for lane in own.lanes.values() for request in lane.late.live.values()]
        return max(late, key=_last, default=None)

    def _turn(self) -> tuple[int, _Class, _Lane] | None:
        """The class and the lane that would finish first at their shares."""
        best: tuple[float, int, _Class, _Lane] | None = None
        for rank, one in self._classes.items():
            lanes = [
                (lane.turn + lane.head().cost / self._policy.of_tenant(tenant).weight, tenant)
                for tenant, lane in one.lanes.items()
                if lane.waits
            ]
            if not lanes:
                continue
            lane = one.lanes[min(lanes)[1]]
            finish = one.turn + lane.head().cost / one.weight
            if best is None or (finish, rank) < best[:2]:
                best = (finish, rank, one, lane)
        return None if best is None else best[1:]


def _last(request: Request) -> tuple[float, str]:
    return request.start_by_s, request.request_id
