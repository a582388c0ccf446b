"""The router as a child process. Nobody restarts it: its end is reported and ends the cluster."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from orchestrator.runtime.child import Child, never
from orchestrator.runtime.worker_configs import trace_config
from orchestrator.spec import ClusterSpec
from router.config import PriorityClass, RouterConfig

_READY_S = 30.0


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where clients reach a cluster, as host:port."""

    grpc: str
    http: str


def router_config(spec: ClusterSpec, store_url: str, cluster: str) -> RouterConfig:
    """What the spec means for the router."""
    return RouterConfig(
        cluster=cluster,
        store_url=store_url,
        model_path=spec.model.path,
        model_name=spec.model.name,
        grpc=spec.router.grpc,
        http=spec.router.http,
        classes=tuple(
            PriorityClass(name, target.ttft_ms, target.itl_ms, target.weight)
            for name, target in spec.classes.items()
        ),
        trace=trace_config(spec),
    )


class RouterProcess:
    """One running router."""

    def __init__(self, spec: ClusterSpec, store_url: str, cluster: str, log_dir: Path) -> None:
        config = router_config(spec, store_url, cluster)
        self.child = Child("the router", ["router"], config.to_json(), log_dir / "router.log")

    def wait_ready(self, interrupted: Callable[[], bool] = never) -> Endpoints:
        """Where it listens, once it does."""
        ready = json.loads(self.child.wait_ready(_READY_S, interrupted))
        return Endpoints(grpc=ready["grpc"], http=ready["http"])

    def stop(self) -> None:
        self.child.stop()
