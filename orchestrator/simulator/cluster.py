"""What is simulated: two kinds of workers, how many of each, and on how many GPUs."""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestrator.simulator.runs import Times
from router.core.events import Role
from router.core.policy import Policy


@dataclass(frozen=True, slots=True)
class WorkerKind:
    """The workers of one pool.

    Attributes:
        times: of steps.
        layout: in words; only workers of equal layouts can take each other's role.
        gpus: of one worker.
        max_requests: that it holds at once.
        kv_tokens: that it has memory for.
        step_tokens: most tokens of one step, decode windows and prompts together.
        draft_tokens: in every decode step.
        out_bytes_per_s, in_bytes_per_s: of its links, all devices that hold parts of a request.
        link_latency_s: of one hand-off, however small.
        cached_block_tokens: of memory that a cached block of 512 tokens takes, with the state after
            it; 0 caches nothing. What requests leave of the memory is for the cache.
        cold_start_s: from having its GPUs to serving.
    """

    times: Times
    layout: str = "TP1"
    gpus: int = 1
    max_requests: int = 256
    kv_tokens: int = 1_000_000
    step_tokens: int = 8192
    draft_tokens: int = 0
    out_bytes_per_s: float = 50e9
    in_bytes_per_s: float = 50e9
    link_latency_s: float = 0.0
    cached_block_tokens: int = 0
    cold_start_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Cluster:
    """Both pools and the router's policy.

    `gpus` is what workers can be started on; None: as many as they need. `error_estimate` is the
    relative error of the times of steps where they come from a profile; None: nobody measured it.
    """

    kinds: dict[Role, WorkerKind]
    counts: dict[Role, int]
    policy: Policy = field(default_factory=Policy)
    gpus: int | None = None
    description: str = ""
    error_estimate: float | None = None

    @property
    def gpus_in_use(self) -> int:
        """Of the workers that it begins with."""
        return sum(self.kinds[role].gpus * count for role, count in self.counts.items())
