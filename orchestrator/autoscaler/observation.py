"""What an autoscaling policy sees: the traffic of one period, the pools, and each worker.

The same record is filled by the simulator and by the live loop, so a policy cannot tell them apart.
Lengths come as a histogram of half octaves: enough for a mean, a variance and a percentile of the
prompts, and as small for a million requests as for ten.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from orchestrator.autoscaler.decisions import Decision
from router.core.events import Role

ROLES: tuple[Role, ...] = ("prefill", "decode")


@dataclass(frozen=True, slots=True)
class Traffic:
    """What came and what ended since the last observation.

    Attributes:
        arrived: requests, with `prompt_tokens` together; `prompt_bins` counts them by `length_bin`.
        finished: requests that ended well, with `answer_tokens` together and the sum of squares.
        ended_prompt_tokens, cached_tokens: of those that finished; how much a cache had of them.
        failed: requests that did not end well.
        met_ttft, met_itl: of those that finished.
        ttft_s, itl_s: means of those that finished; 0 without any.
        running_tokens: made so far by all requests that decode, `running` of them.
    """

    arrived: int = 0
    prompt_tokens: float = 0.0
    prompt_bins: Mapping[int, int] = field(default_factory=dict)
    finished: int = 0
    answer_tokens: float = 0.0
    answer_squares: float = 0.0
    ended_prompt_tokens: float = 0.0
    cached_tokens: float = 0.0
    failed: int = 0
    met_ttft: int = 0
    met_itl: int = 0
    ttft_s: float = 0.0
    itl_s: float = 0.0
    running: int = 0
    running_tokens: float = 0.0


@dataclass(frozen=True, slots=True)
class WorkerSeen:
    """One worker that serves, as it reported itself; what was not measured is 0.

    Attributes:
        age_s: since it joined, or took its role.
        home: the pool that started it; None where a worker that flips changes pools.
        leaving: it drains to go, or to take the other role.
        held_tokens: of memory that requests take; of `total_tokens`.
        prefill_tokens_per_s: while it reads.
        step_ms, step_requests, context_tokens: of its decode steps of late; contexts of all
            requests in it together.
    """

    worker_id: str
    role: Role
    age_s: float
    home: Role | None = None
    leaving: bool = False
    running: int = 0
    held_tokens: int = 0
    total_tokens: int = 0
    prefill_tokens_per_s: float = 0.0
    step_ms: float = 0.0
    step_requests: int = 0
    context_tokens: float = 0.0


@dataclass(frozen=True, slots=True)
class Observation:
    """What there is.

    Attributes:
        now_s: on the clock of whoever observes; `period_s` since the last observation.
        queued_requests: in the router.
        running_requests: on workers.
        serving: workers that serve; those that drain to go are not among them.
        coming: workers that wait for GPUs (Pending) or start.
        flipping: workers that are to take this role and still drain; not in `serving` of either.
        pending: those of `coming` that wait for GPUs and can be called off at no cost.
    """

    now_s: float
    queued_requests: int
    running_requests: int
    serving: Mapping[Role, int]
    coming: Mapping[Role, int]
    period_s: float = 5.0
    flipping: Mapping[Role, int] = field(default_factory=dict)
    pending: Mapping[Role, int] = field(default_factory=dict)
    traffic: Traffic = Traffic()
    workers: tuple[WorkerSeen, ...] = ()

    def expected(self, role: Role) -> int:
        """Workers that serve or will: Pending ones count as coming."""
        return self.serving[role] + self.coming[role] + self.flipping.get(role, 0)


@dataclass(frozen=True, slots=True)
class Change:
    """What a policy wants from now on.

    Attributes:
        counts: workers of each role, flips counted as done.
        flips: so many workers take that role, of those that serve in the other.
        decision: why; None while nothing changes.
    """

    counts: Mapping[Role, int]
    flips: Mapping[Role, int] = field(default_factory=dict)
    decision: Decision | None = None


# What is observed, and how many workers were wanted so far, to what is wanted now.
CountPolicy: TypeAlias = Callable[[Observation, Mapping[Role, int]], Change]
