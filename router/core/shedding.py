"""Who is told at once that it would wait too long, instead of after it has.

The wait is predicted from what has left the queue of late (tokens per second, while something was
waiting) and from what is ahead, so it holds for whatever is short: slots, prefill, link, workers.
"""

from __future__ import annotations

from dataclasses import dataclass

from router.core.admission import AdmissionQueue
from router.core.policy import Policy, TenantPolicy
from router.core.rates import Rate
from router.core.request import Request

_HALF_LIFE_S = 5.0
_ROUNDING = 1e-6  # tokens


class Outflow:
    """How many tokens leave the queue per second while some wait."""

    def __init__(self) -> None:
        self._rate = Rate(_HALF_LIFE_S)
        self._since_s: float | None = None  # when the queue was last served or filled

    def filled(self, now_s: float) -> None:
        """Something waits that nobody could take."""
        if self._since_s is None:
            self._since_s = now_s

    def served(self, cost: float, now_s: float) -> None:
        """A request left to be served; one that did not have to wait says nothing."""
        if self._since_s is not None:
            self._rate.add(cost, now_s - self._since_s)
            self._since_s = now_s

    def emptied(self) -> None:
        """Nothing waits."""
        self._since_s = None

    def per_s(self, now_s: float) -> float:
        """0 while it is not known."""
        return self._rate.per_s(0.0 if self._since_s is None else now_s - self._since_s)


def predicted_wait_s(queue: AdmissionQueue, outflow_per_s: float, request: Request) -> float:
    """How long a newcomer would wait; 0 while nothing is known.

    Its class gets its share of the outflow at least, and all of it when nobody else waits.
    """
    if outflow_per_s <= 0.0:
        return 0.0
    own, everything = queue.cost_ahead(request.class_rank)
    return min(everything, own / queue.share(request.class_rank)) / outflow_per_s


def longest_wait_s(policy: Policy, request: Request) -> float:
    """How long a request may wait before it is not worth serving."""
    patience_s = policy.patience * policy.of_class(request.class_rank).ttft_s
    if request.deadline_s is not None:
        patience_s = min(patience_s, request.deadline_s - request.arrived_s)
    return patience_s


@dataclass(slots=True)
class TokenBucket:
    """A tenant's limit: so many tokens per second, saved up to a burst."""

    policy: TenantPolicy
    tokens: float
    as_of_s: float

    def take(self, cost: float, now_s: float) -> float:
        """Take the tokens of a request. Returns 0, or in how many seconds it could be taken.

        A request larger than the burst is taken when the bucket is full, and leaves it in debt.
        """
        rate = self.policy.tokens_per_s
        if rate is None:
            return 0.0
        burst = max(self.policy.burst_tokens, rate)
        self.tokens = min(burst, self.tokens + rate * (now_s - self.as_of_s))
        self.as_of_s = now_s
        needed = min(cost, burst)
        if self.tokens < needed - _ROUNDING:
            return (needed - self.tokens) / rate
        self.tokens -= cost
        return 0.0


class Limits:
    """The buckets of all tenants; one that is full again is forgotten."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._buckets: dict[str, TokenBucket] = {}

    def take(self, tenant: str, cost: float, now_s: float) -> float:
        """As TokenBucket.take."""
        policy = self._policy.of_tenant(tenant)
        if policy.tokens_per_s is None:
            return 0.0
        bucket = self._buckets.get(tenant)
        if bucket is None:
            if len(self._buckets) >= 4096:
                del self._buckets[next(iter(self._buckets))]
            full = max(policy.burst_tokens, policy.tokens_per_s)
            bucket = self._buckets[tenant] = TokenBucket(policy, full, now_s)
        return bucket.take(cost, now_s)
