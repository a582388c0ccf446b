"""The two pools as Ray Serve deployments: `prefill` and `decode`, one worker for each replica.

A worker of N ranks is one replica in a placement group of one bundle that holds what N ranks take.
Its other ranks are child processes of the replica, so they are on its node (the domain of NVLink),
see the GPUs that Ray gave to the bundle, and end with it. Bundles of one rank each would let Ray
spread a group, which is what Helix must not do, and would hide all GPUs but one from the replica.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import UserError
from orchestrator.runtime.node_replica import NodeReplica
from orchestrator.runtime.placement import Placement
from orchestrator.runtime.replica import FAILURE_SUFFIX, WorkerReplica, shutdown_timeout_s
from orchestrator.runtime.worker_configs import worker_config
from orchestrator.spec import ClusterSpec
from workers.registry import Role

HEALTH_PERIOD_S = 2.0
HEALTH_TIMEOUT_S = 30.0  # one engine step of a large model may take long
DRAIN_S = 600.0  # a worker that stops finishes its requests first; with no router it has none
_ROLES: tuple[Role, ...] = ("prefill", "decode")


@dataclass(frozen=True, slots=True)
class PoolProgress:
    """How far the pools are in starting."""

    ready: int
    wanted: int

    @property
    def complete(self) -> bool:
        return self.ready >= self.wanted


class Pools:
    """Deploys the pools and answers how they are; needs a running Ray."""

    def __init__(self, spec: ClusterSpec, store_url: str, cluster: str, log_dir: Path) -> None:
        self._log_dir = log_dir
        self._sizes: dict[Role, int] = {
            "prefill": spec.prefill.workers.min,
            "decode": spec.decode.workers.min,
        }
        self._roles = [role for role in _ROLES if self._sizes[role] > 0]
        self._deploy(spec, store_url, cluster)

    def _deploy(self, spec: ClusterSpec, store_url: str, cluster: str) -> None:
        from ray import serve
        from ray.serve.schema import LoggingConfig

        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        serve_logs = LoggingConfig(logs_dir=str(self._log_dir / "serve"), enable_access_log=False)
        # No proxy: clients talk to the router, and the router to each worker's own port.
        serve.start(proxy_location="Disabled", logging_config=serve_logs)
        targets = []
        for role in self._roles:
            placement = Placement.of(spec, role)
            deploy = serve.deployment(
                name=role,
                num_replicas=self._sizes[role],
                ray_actor_options=placement.actor_options,
                health_check_period_s=HEALTH_PERIOD_S,
                health_check_timeout_s=HEALTH_TIMEOUT_S,
                graceful_shutdown_wait_loop_s=0.1,
                graceful_shutdown_timeout_s=shutdown_timeout_s(DRAIN_S),
                logging_config=serve_logs,
            )
            config = worker_config(spec, role, store_url, cluster)
            deployment = deploy(NodeReplica if spec.ray.joined else WorkerReplica)
            if placement.bundles is not None:
                deployment = deployment.options(placement_group_bundles=placement.bundles)
            application = deployment.bind(config.to_json(), str(self._log_dir), DRAIN_S)
            targets.append(serve.RunTarget(target=application, name=role, route_prefix=None))
        serve.run_many(
            targets,
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )

    def progress(self) -> PoolProgress:
        """How many workers are up. Raises UserError when one cannot start."""
        from ray import serve

        for path in sorted(self._log_dir.glob(f"*{FAILURE_SUFFIX}")):
            log = path.with_suffix(".log")
            reason = path.read_text(encoding="utf-8")
            raise UserError(f"worker {path.stem} did not start: {reason}", f"see its log: {log}")
        ready = 0
        for name, application in serve.status().applications.items():
            for deployment in application.deployments.values():
                states = deployment.replica_states.items()
                ready += sum(count for state, count in states if state == "RUNNING")
                if deployment.status == "DEPLOY_FAILED":
                    last_line = deployment.message.strip().rsplit("\n", 1)[-1]
                    raise UserError(
                        f"the {name} pool did not start: {last_line}",
                        f"see the logs in {self._log_dir}",
                    )
        return PoolProgress(ready, sum(self._sizes.values()))

    def stop(self) -> None:
        """Stop all workers gracefully and wait for them."""
        from ray import serve

        for role in self._roles:
            serve.delete(role, _blocking=False)
        for role in self._roles:
            serve.delete(role)
        if not serve.status().applications:
            # In a Ray that goes on, its controller would stay.
            serve.shutdown()  # type: ignore[no-untyped-call]
