"""The autoscaler that a cluster's file asks for, ready to run once there is a scaler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from orchestrator.autoscaler.journal import Journal
from orchestrator.autoscaler.live import ground_of_spec
from orchestrator.autoscaler.loop import AutoscalerLoop, RouterCalls, Scaler
from orchestrator.autoscaler.policy import TandemPolicy
from orchestrator.spec import ClusterSpec


def autoscaler_of(
    spec: ClusterSpec, log_dir: Path, routers: Callable[[], Sequence[str]]
) -> Callable[[Scaler], AutoscalerLoop] | None:
    """None: `autoscaling.mode` is off, or both pools are fixed."""
    mode = spec.autoscaling.mode
    fixed = all(pool.workers.min == pool.workers.max for pool in (spec.prefill, spec.decode))
    if mode == "off" or fixed:
        return None
    chosen = mode
    ground = ground_of_spec(spec)

    def make(scaler: Scaler) -> AutoscalerLoop:
        return AutoscalerLoop(
            TandemPolicy(ground), ground, scaler, RouterCalls(routers), Journal(log_dir), chosen
        )

    return make
