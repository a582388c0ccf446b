"""The two pools as Ray Serve deployments: `prefill` and `decode`, one worker for each replica.

A worker of N ranks is one replica in a placement group of one bundle that holds what N ranks take.
Its other ranks are child processes of the replica, so they are on its node (the domain of NVLink),
see the GPUs that Ray gave to the bundle, and end with it. Bundles of one rank each would let Ray
spread a group, which is what Helix must not do, and would hide all GPUs but one from the replica.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.errors import UserError
from orchestrator.runtime.node_replica import NodeReplica
from orchestrator.runtime.placement import Placement
from orchestrator.runtime.replica import FAILURE_SUFFIX, WorkerReplica
from orchestrator.runtime.stop_times import shutdown_timeout_s
from orchestrator.runtime.worker_configs import worker_config
from orchestrator.spec import ClusterSpec
from workers.registry import Role

if TYPE_CHECKING:
    from ray.serve import Application
    from ray.serve.schema import LoggingConfig

HEALTH_PERIOD_S = 2.0
HEALTH_TIMEOUT_S = 30.0  # one engine step of a large model may take long
DRAIN_S = 600.0  # a worker that stops finishes its requests first; with no router it has none
_CONTROLLER_TIMEOUT_S = 30.0
_KNOWN_POLL_S = 0.1
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

    def __init__(
        self, spec: ClusterSpec, store_url: str, cluster: str, log_dir: Path, prefix: str = ""
    ) -> None:
        """`prefix` tells the pools of one model from those of another, of the same cluster."""
        self._spec = spec
        self._prefix = prefix
        self._store_url = store_url
        self._cluster = cluster
        self._log_dir = log_dir
        self._sizes: dict[Role, int] = {
            "prefill": spec.prefill.workers.min,
            "decode": spec.decode.workers.min,
        }
        self._deployed: list[Role] = []
        self._start_serve()
        self._deploy([role for role in _ROLES if self._sizes[role] > 0])

    def _start_serve(self) -> None:
        from ray import serve

        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        # No proxy: clients talk to the router, and the router to each worker's own port.
        serve.start(proxy_location="Disabled", logging_config=self._serve_logs())

    def _serve_logs(self) -> LoggingConfig:
        from ray.serve.schema import LoggingConfig

        return LoggingConfig(logs_dir=str(self._log_dir / "serve"), enable_access_log=False)

    def _deploy(self, roles: Sequence[Role]) -> None:
        from ray import serve

        targets = [
            serve.RunTarget(
                target=self._application(role),
                name=self._prefix + role,
                route_prefix=None,
                external_scaler_enabled=True,
            )
            for role in roles
        ]
        serve.run_many(
            targets,
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )
        self._deployed.extend(roles)

    def _application(self, role: Role) -> Application:
        from ray import serve

        placement = Placement.of(self._spec, role)
        deploy = serve.deployment(
            name=role,
            num_replicas=self._sizes[role],
            ray_actor_options=placement.actor_options,
            health_check_period_s=HEALTH_PERIOD_S,
            health_check_timeout_s=HEALTH_TIMEOUT_S,
            graceful_shutdown_wait_loop_s=0.1,
            graceful_shutdown_timeout_s=shutdown_timeout_s(DRAIN_S),
            logging_config=self._serve_logs(),
        )
        config = worker_config(self._spec, role, self._store_url, self._cluster)
        deployment = deploy(NodeReplica if self._spec.ray.joined else WorkerReplica)
        if placement.bundles is not None:
            deployment = deployment.options(placement_group_bundles=placement.bundles)
        return deployment.bind(config.to_json(), str(self._log_dir), DRAIN_S)

    @property
    def sizes(self) -> dict[Role, int]:
        """How many workers each pool is meant to have."""
        return dict(self._sizes)

    def resize(self, role: Role, workers: int) -> None:
        """Have the pool be given so many workers; those that go are drained on their own.

        The number alone changes, by the call behind Serve's HTTP API for external scalers (no
        dashboard runs here to serve that); deploying anew would restart every replica. Raises
        UserError when Serve refuses.
        """
        import ray
        from ray.exceptions import RayError
        from ray.serve._private.common import DeploymentID
        from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

        self._sizes[role] = workers
        if role not in self._deployed:
            if workers > 0:
                self._deploy([role])
            return
        self._wait_known(role)
        controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
        deployment = DeploymentID(name=role, app_name=self._prefix + role)
        try:
            ray.get(
                controller.update_deployment_replicas.remote(deployment, workers),
                timeout=_CONTROLLER_TIMEOUT_S,
            )
        except RayError as error:
            raise UserError(
                f"Ray Serve did not change the {role} pool: {error}", "see the logs of Ray Serve"
            ) from error

    def _wait_known(self, role: Role) -> None:
        """Until Serve's controller has taken in the deployment, which it does after the call.

        Raises UserError when it does not.
        """
        from ray import serve

        deadline_s = time.monotonic() + _CONTROLLER_TIMEOUT_S
        while time.monotonic() < deadline_s:
            application = serve.status().applications.get(self._prefix + role)
            if application is not None and role in application.deployments:
                return
            time.sleep(_KNOWN_POLL_S)
        raise UserError(f"Ray Serve does not know the {role} pool", "see the logs of Ray Serve")

    def progress(self) -> PoolProgress:
        """How many workers are up. Raises UserError when one cannot start."""
        from ray import serve

        for path in sorted(self._log_dir.glob(f"*{FAILURE_SUFFIX}")):
            log = path.with_suffix(".log")
            reason = path.read_text(encoding="utf-8")
            raise UserError(f"worker {path.stem} did not start: {reason}", f"see its log: {log}")
        ready = 0
        own = {self._prefix + role for role in self._deployed}
        for name, application in serve.status().applications.items():
            if name not in own:
                continue
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

        for role in self._deployed:
            serve.delete(self._prefix + role, _blocking=False)
        for role in self._deployed:
            serve.delete(self._prefix + role)
        if self._spec.ray.joined and not serve.status().applications:
            # In a Ray that goes on, its controller would stay.
            serve.shutdown()  # type: ignore[no-untyped-call]
