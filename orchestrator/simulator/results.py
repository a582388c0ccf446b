"""What a simulation found, as figures: the document of `tandem simulate --json`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from orchestrator.simulator.cluster import Cluster
from orchestrator.simulator.recording import RequestRows, Sample
from orchestrator.simulator.simulation import Outcome
from router.core.policy import ClassPolicy

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, slots=True)
class ClassResult:
    """How the requests of one class did. `good` met both targets."""

    name: str
    requests: int
    ttft_target_ms: float
    itl_target_ms: float
    met_ttft: int
    met_itl: int
    good: int


@dataclass(frozen=True, slots=True)
class Results:
    """Latencies are percentiles of requests that ended well; rates are over `seconds`."""

    cluster: Cluster
    outcome: Outcome
    requests: int
    wall_s: float
    latencies: dict[str, dict[str, float]]
    classes: tuple[ClassResult, ...]

    @classmethod
    def of(cls, cluster: Cluster, outcome: Outcome, requests: int, wall_s: float) -> Results:
        """`requests` were sent; `wall_s` is what the simulation took of real time."""
        rows = outcome.requests
        latencies = {
            name: percentiles(values)
            for name, values in (
                ("ttft_ms", rows.ttft_ms),
                # A mean over the gaps of one request; without a gap there is none.
                ("itl_ms", [itl for itl, n in zip(rows.itl_ms, rows.tokens, strict=True) if n > 1]),
                ("e2e_ms", rows.total_ms),
                ("queue_ms", rows.queue_ms),
            )
        }
        classes = tuple(_class(rank, one, rows) for rank, one in enumerate(cluster.policy.classes))
        return cls(cluster, outcome, requests, wall_s, latencies, classes)

    @property
    def finished(self) -> int:
        return len(self.outcome.requests.numbers)

    @property
    def goodput_rps(self) -> float:
        """Requests a second that met both targets of their class."""
        return self._per_s(sum(one.good for one in self.classes))

    @property
    def tokens_per_s(self) -> float:
        return self._per_s(sum(self.outcome.requests.tokens))

    @property
    def tokens_per_s_gpu(self) -> float:
        """Of the GPUs that were in use, on average."""
        hours = self.outcome.gpu_hours
        return sum(self.outcome.requests.tokens) / (hours * 3600.0) if hours else 0.0

    @property
    def mean_gpus(self) -> float:
        return self._per_s(self.outcome.gpu_hours * 3600.0)

    def _per_s(self, amount: float) -> float:
        seconds = self.outcome.seconds
        return amount / seconds if seconds > 0.0 else 0.0

    def document(self) -> dict[str, object]:
        """Everything, units in the names."""
        outcome, rows, match = self.outcome, self.outcome.requests, self.outcome.match
        return {
            "cluster": {
                "description": self.cluster.description,
                "gpus": self.cluster.gpus_in_use,
                "prefill_workers": self.cluster.counts["prefill"],
                "decode_workers": self.cluster.counts["decode"],
                "error_estimate": self.cluster.error_estimate,
            },
            "requests": self.requests,
            "finished": self.finished,
            "failed": dict(sorted(rows.failures.items())),
            "retries": rows.retries,
            "seconds": outcome.seconds,
            **self.latencies,
            "requests_per_s": self._per_s(self.finished),
            "tokens_per_s": self.tokens_per_s,
            "tokens_per_s_gpu": self.tokens_per_s_gpu,
            "goodput_rps": self.goodput_rps,
            "goodput_share": sum(one.good for one in self.classes) / self.requests,
            "classes": [asdict(one) for one in self.classes],
            "gpu_hours": outcome.gpu_hours,
            "mean_gpus": self.mean_gpus,
            "matched_ratio": match.matched_ratio,
            "prefill_idle_share": match.prefill_idle_share,
            "decode_idle_share": match.decode_idle_share,
            "waited_s": match.waited_s,
            "handed_off": self.finished - sum(rows.local),
            "prefix_hit_share": rows.cached_tokens / max(rows.prompt_tokens, 1),
            "decisions": [decision.document() for decision in outcome.decisions],
            "timeline": [asdict(sample) for sample in outcome.samples],
            "simulated": {
                "wall_s": self.wall_s,
                "requests_per_wall_s": self.requests / self.wall_s if self.wall_s > 0.0 else None,
                "events": outcome.events,
            },
        }


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p90, p99 and the mean; zeros when there is nothing."""
    if not len(values):
        return {**{f"p{share}": 0.0 for share in PERCENTILES}, "mean": 0.0}
    column = np.asarray(values, np.float64)
    found = np.percentile(column, PERCENTILES)
    named = {f"p{share}": float(value) for share, value in zip(PERCENTILES, found, strict=True)}
    return {**named, "mean": float(column.mean())}


def rate_of(samples: Sequence[Sample]) -> list[tuple[float, float]]:
    """Requests finished per second between samples, at the later one."""
    return [
        (after.at_s, (after.finished - before.finished) / (after.at_s - before.at_s))
        for before, after in itertools.pairwise(samples)
        if after.at_s > before.at_s
    ]


def _class(rank: int, policy: ClassPolicy, rows: RequestRows) -> ClassResult:
    mine = np.asarray(rows.class_ranks) == rank
    ttft = np.asarray(rows.ttft_ms)[mine] <= policy.ttft_s * 1e3
    itl = np.asarray(rows.itl_ms)[mine] <= policy.itl_s * 1e3
    return ClassResult(
        policy.name,
        int(mine.sum()),
        policy.ttft_s * 1e3,
        policy.itl_s * 1e3,
        int(ttft.sum()),
        int(itl.sum()),
        int((ttft & itl).sum()),
    )
