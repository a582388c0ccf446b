"""What the report compares: traffic, workers, targets and cold starts.

Workers are Llama 3.1 70B in FP8, each on one H200, for both roles, by the assumed efficiencies of
`workers/perf`; layouts are equal, so roles can be flipped. Requests of traces are sent twice,
so that more than a handful of workers is needed; copies have their own moments and prefixes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.autoscaler.comparison import traffic
from orchestrator.autoscaler.ground import Ground
from orchestrator.simulator.building import Machines, Options
from orchestrator.simulator.cluster import Cluster
from orchestrator.simulator.trace import TraceRequest, read_trace
from router.core.policy import ClassPolicy, Policy
from workers.perf.layouts import Layout

COLD_STARTS_S = (30.0, 180.0)
# The fewest workers, prefill and decode, that `tandem` is tried with besides where rates jump.
FLOORS = ((2, 1), (3, 1), (3, 2), (4, 2))
_SLOTS, _STEP_TOKENS = 64, 8192
_ITL_S = 0.04


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of traffic.

    Attributes:
        shifting: whether what is asked changes much over time, so that fixed counts are wasteful.
        cached_share: of prompts, that the clairvoyant policies assume to be cached.
        make: its requests, from the folder of traces.
        jumps: of its rate, that nothing announces.
    """

    name: str
    shifting: bool
    ttft_s: float
    make: Callable[[Path], list[TraceRequest]]
    cached_share: float = 0.0
    jumps: traffic.Jumps | None = None

    def cluster(self) -> Cluster:
        """Both pools; how many workers there are is for the policies."""
        machines = Machines.of("llama-3.1-70b", "h200", "fp8", None, Options())
        kind = machines.kind(
            Layout(),
            slots=_SLOTS,
            step_tokens=_STEP_TOKENS,
            draft_tokens=0,
            acceptance_length=1.0,
        )
        policy = Policy(classes=(ClassPolicy("all", self.ttft_s, _ITL_S),))
        return Cluster(
            {"prefill": kind, "decode": kind},
            {"prefill": 1, "decode": 1},
            policy,
            description="llama-3.1-70b in fp8 on h200, both roles TP1",
        )

    def ground(self, cluster: Cluster, cold_start_s: float) -> Ground:
        """What every policy is told."""
        kinds = {
            role: replace(kind, cold_start_s=cold_start_s) for role, kind in cluster.kinds.items()
        }
        return Ground(kinds, self.ttft_s, _ITL_S, cold_start_s=cold_start_s)


def _azure(folder: Path) -> list[TraceRequest]:
    return traffic.thickened(read_trace(folder / "azure_2023_conv.csv"), 2)


def _mooncake(folder: Path) -> list[TraceRequest]:
    return traffic.thickened(read_trace(folder / "mooncake_conversation.jsonl"), 2)


def _shaped(shape: traffic.Shape) -> Case:
    return Case(shape.name, True, 3.0, lambda _: traffic.requests_of(shape), jumps=shape.jumps)


CASES: tuple[Case, ...] = (
    _shaped(traffic.step()),
    _shaped(traffic.burst()),
    _shaped(traffic.diurnal()),
    _shaped(traffic.lengths()),
    Case("azure", False, 3.0, _azure),
    Case("mooncake", False, 30.0, _mooncake, cached_share=0.3),
)
