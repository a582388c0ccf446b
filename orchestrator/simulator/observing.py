"""What an autoscaling policy is told of a simulated cluster: what a live router would know.

The length of an answer that still runs is not known; how many tokens it has made is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from orchestrator.autoscaler.observation import (
    ROLES,
    Observation,
    Traffic,
    WorkerSeen,
)
from orchestrator.simulator.pools import Pools
from orchestrator.simulator.recording import RequestRows
from orchestrator.simulator.trace import TraceRequest
from orchestrator.simulator.worker import Worker
from router.core.lifecycle import Lifecycle
from router.core.policy import Policy
from router.traffic import length_bin


class Observer:
    """Remembers what it has told, so that each observation is of what came since."""

    def __init__(
        self,
        trace: Sequence[TraceRequest],
        policy: Policy,
        pools: Pools,
        core: Lifecycle,
        rows: RequestRows,
    ) -> None:
        self._trace = trace
        self._policy = policy
        self._pools = pools
        self._core = core
        self._rows = rows
        self._as_of_s = 0.0
        self._arrived = self._ended = self._failed = 0
        self._prompts = self._cached = 0
        self._joined_s: dict[tuple[str, str], float] = {}

    def observe(self, now_s: float, arrived: int) -> Observation:
        """The cluster now; `arrived` requests have come since the beginning."""
        pools, core = self._pools, self._core
        workers = tuple(self._seen(worker, now_s) for worker in pools.workers.values())
        queued = len(core.queue)
        observed = Observation(
            now_s,
            queued,
            len(core.requests) - queued,
            {role: pools.staying(role) for role in ROLES},
            {role: pools.starting[role] + pools.pending(role) for role in ROLES},
            period_s=now_s - self._as_of_s,
            flipping={role: pools.flipping(role) for role in ROLES},
            pending={role: pools.pending(role) for role in ROLES},
            traffic=self._traffic(arrived),
            workers=workers,
        )
        self._as_of_s = now_s
        return observed

    def _traffic(self, arrived: int) -> Traffic:
        rows, came = self._rows, self._trace[self._arrived : arrived]
        begin, end = self._ended, len(rows.numbers)
        answers = rows.tokens[begin:end]
        ttft_ms, itl_ms = rows.ttft_ms[begin:end], rows.itl_ms[begin:end]
        targets = [self._policy.of_class(rank) for rank in rows.class_ranks[begin:end]]
        failed = rows.failures.total()
        made = [worker.made_tokens() for worker in self._pools.workers.values() if worker.decoding]
        traffic = Traffic(
            arrived=len(came),
            prompt_tokens=float(sum(one.prompt_tokens for one in came)),
            prompt_bins=Counter(length_bin(one.prompt_tokens) for one in came),
            finished=end - begin,
            answer_tokens=float(sum(answers)),
            answer_squares=float(sum(one * one for one in answers)),
            ended_prompt_tokens=float(rows.prompt_tokens - self._prompts),
            cached_tokens=float(rows.cached_tokens - self._cached),
            failed=failed - self._failed,
            met_ttft=sum(ms <= one.ttft_s * 1e3 for ms, one in zip(ttft_ms, targets, strict=True)),
            met_itl=sum(ms <= one.itl_s * 1e3 for ms, one in zip(itl_ms, targets, strict=True)),
            ttft_s=sum(ttft_ms) / 1e3 / max(len(ttft_ms), 1),
            itl_s=sum(itl_ms) / 1e3 / max(len(itl_ms), 1),
            running=sum(count for count, _ in made),
            running_tokens=float(sum(tokens for _, tokens in made)),
        )
        self._arrived, self._ended, self._failed = arrived, end, failed
        self._prompts, self._cached = rows.prompt_tokens, rows.cached_tokens
        return traffic

    def _seen(self, worker: Worker, now_s: float) -> WorkerSeen:
        key = worker.worker_id, worker.role
        joined_s = self._joined_s.setdefault(key, self._as_of_s)
        view = self._core.fleet.get(worker.worker_id)
        load = None if view is None else view.load
        return WorkerSeen(
            worker.worker_id,
            worker.role,
            now_s - joined_s,
            leaving=worker.draining,
            running=len(worker.jobs),
            held_tokens=worker.held_tokens,
            total_tokens=worker.kind.kv_tokens,
            prefill_tokens_per_s=0.0 if load is None else load.prefill_tokens_per_s,
            step_ms=0.0 if load is None else load.step_ms,
            step_requests=0 if load is None else load.step_requests,
            context_tokens=worker.context_tokens,
        )
