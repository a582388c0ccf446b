"""One policy on one trace: a simulation, and the figures by which policies are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace

from pydantic import BaseModel

from orchestrator.autoscaler.baselines import FixedCounts
from orchestrator.autoscaler.ground import Ground
from orchestrator.autoscaler.observation import CountPolicy
from orchestrator.simulator.cluster import Cluster
from orchestrator.simulator.results import Results
from orchestrator.simulator.simulation import Settings, Simulation
from orchestrator.simulator.trace import TraceRequest
from router.core.events import Role


@dataclass(frozen=True, slots=True)
class Figures:
    """How a policy did.

    Attributes:
        attainment: share of all requests that met both targets; those that were refused did not.
        lost: requests that were accepted and did not end well.
        refused: requests that were turned away at once because they would have waited too long.
        goodput_per_gpu_hour: requests that met both targets, for each GPU-hour.
        actions: changes of counts or roles.
        timeline: (seconds, prefill workers, decode workers) that serve.
        grew_s: when more workers were asked for.
    """

    policy: str
    requests: int
    attainment: float
    lost: int
    refused: int
    gpu_hours: float
    goodput_per_gpu_hour: float
    actions: int
    actions_per_hour: float
    hours: float
    timeline: tuple[tuple[float, int, int], ...]
    grew_s: tuple[float, ...] = ()

    def document(self) -> dict[str, object]:
        """For a JSON file."""
        return asdict(self)

    @classmethod
    def of(cls, document: Mapping[str, object]) -> Figures:
        """What `document` gave. Raises ValidationError for anything else."""
        values = _Stored.model_validate(document)
        return cls(**{field.name: getattr(values, field.name) for field in fields(cls)})


class _Stored(BaseModel):
    policy: str
    requests: int
    attainment: float
    lost: int
    refused: int
    gpu_hours: float
    goodput_per_gpu_hour: float
    actions: int
    actions_per_hour: float
    hours: float
    timeline: tuple[tuple[float, int, int], ...]
    grew_s: tuple[float, ...] = ()


def run(
    cluster: Cluster,
    trace: Sequence[TraceRequest],
    policy: CountPolicy,
    name: str,
    ground: Ground,
    begin: Mapping[Role, int],
) -> Figures:
    """Simulate; the cluster begins with some counts that serve."""
    kinds = {
        role: replace(kind, cold_start_s=ground.cold_start_s)
        for role, kind in cluster.kinds.items()
    }
    one = replace(cluster, kinds=kinds, counts=dict(begin))
    settings = Settings(period_s=ground.period_s)
    outcome = Simulation(one, trace, settings=settings, counts=policy).run()
    results = Results.of(one, outcome, len(trace), 0.0)
    good = sum(cls.good for cls in results.classes)
    refused = sum(
        count for reason, count in outcome.requests.failures.items() if reason in _REFUSALS
    )
    hours = outcome.seconds / 3600.0
    return Figures(
        policy=name,
        requests=len(trace),
        attainment=good / len(trace),
        lost=outcome.requests.failures.total() - refused,
        refused=refused,
        gpu_hours=outcome.gpu_hours,
        goodput_per_gpu_hour=good / outcome.gpu_hours,
        actions=len(outcome.decisions),
        actions_per_hour=len(outcome.decisions) / hours,
        hours=hours,
        timeline=tuple(
            (one.at_s, one.prefill_serving, one.decode_serving) for one in outcome.samples
        ),
        grew_s=tuple(
            one.at_s
            for one in outcome.decisions
            if sum(one.after.values()) > sum(one.before.values())
        ),
    )


_REFUSALS = frozenset({"REASON_OVERLOADED", "REASON_QUEUE_FULL"})


def run_fixed(
    cluster: Cluster, trace: Sequence[TraceRequest], ground: Ground, counts: Mapping[Role, int]
) -> Figures:
    """Counts that never change."""
    return run(cluster, trace, FixedCounts(ground, counts), "static-best", ground, counts)
