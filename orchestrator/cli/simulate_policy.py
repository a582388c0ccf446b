"""`tandem simulate --policy NAME`: which autoscaling policy a simulated cluster follows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from orchestrator.cli.terminal import note
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.autoscaler.ground import Ground
    from orchestrator.autoscaler.observation import CountPolicy
    from orchestrator.simulator.cluster import Cluster
    from orchestrator.simulator.trace import TraceRequest


def policy_named(
    name: str | None, cluster: Cluster, trace: Sequence[TraceRequest], cold_start_s: float
) -> CountPolicy | None:
    """The policy of a name; None: counts stay. Clairvoyant ones are looked for by simulation.

    Raises UsageError for a name that is not known.
    """
    from orchestrator.autoscaler.baselines import FixedCounts
    from orchestrator.autoscaler.comparison.search import best_oracle, static_best
    from orchestrator.autoscaler.names import NAMES, REACTIVE

    if name is None:
        return None
    ground = ground_of(cluster, cold_start_s)
    for reactive, make in REACTIVE.items():
        if name == reactive:
            return make(ground)
    if name == "static-best":
        return FixedCounts(ground, static_best(cluster, trace, ground, 0.0, note)[0])
    if name == "oracle":
        return best_oracle(cluster, trace, ground, 0.0, note)[0]
    raise UsageError(f"--policy {name}: must be one of {', '.join(NAMES)}")


def ground_of(cluster: Cluster, cold_start_s: float) -> Ground:
    """What a policy has to know of a cluster: the targets are those of its strictest class."""
    from orchestrator.autoscaler.ground import Ground

    strictest = cluster.policy.classes[0]
    return Ground(cluster.kinds, strictest.ttft_s, strictest.itl_s, cold_start_s=cold_start_s)
