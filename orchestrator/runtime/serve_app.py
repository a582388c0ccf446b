"""The pools as a Ray Serve application that a config file names: what KubeRay deploys.

`import_path: orchestrator.runtime.serve_app:pool`, one application for each pool. Unlike the pools
of `tandem up`, workers listen on the address of their node, since routers run elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.runtime.node_replica import NodeReplica
from orchestrator.runtime.placement import Placement
from orchestrator.runtime.pools import HEALTH_PERIOD_S, HEALTH_TIMEOUT_S
from orchestrator.runtime.stop_times import shutdown_timeout_s
from orchestrator.runtime.worker_configs import worker_config
from orchestrator.spec.loading import find_model, validated
from workers.registry import Role

if TYPE_CHECKING:
    from ray.serve import Application

_LOG_DIR = "/tmp/tandem"  # noqa: S108 - the only place that a pod may write to


def pool(args: Mapping[str, object]) -> Application:
    """The application of one pool.

    `args` are those of the config file: `role`, `store_url`, `cluster`, `spec` (a ClusterSpec
    without what may change while workers run) and `place_on`, the custom Ray resource of which
    each node for one worker has 1. The number of replicas stands in the file's `deployments`.
    Raises SpecError when the spec is wrong.
    """
    from ray import serve

    role = _role(args["role"])
    spec_fields = args["spec"]
    if not isinstance(spec_fields, Mapping):
        raise TypeError(f"args.spec of the {role} application is {spec_fields!r}, not a mapping")
    spec = validated(spec_fields)
    path = str(find_model(spec.model.path, Path.cwd()))
    spec = spec.model_copy(update={"model": spec.model.model_copy(update={"path": path})})
    placement = Placement.of(spec, role, str(args["place_on"]))
    drain_s = float(spec.kubernetes.drain_timeout_s)
    deploy = serve.deployment(
        name=role,
        ray_actor_options=placement.actor_options,
        health_check_period_s=HEALTH_PERIOD_S,
        health_check_timeout_s=HEALTH_TIMEOUT_S,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=shutdown_timeout_s(drain_s),
    )
    config = worker_config(spec, role, str(args["store_url"]), str(args["cluster"]))
    deployment = deploy(NodeReplica)
    if placement.bundles is not None:
        deployment = deployment.options(placement_group_bundles=placement.bundles)
    return deployment.bind(config.to_json(), _LOG_DIR, drain_s)


def _role(value: object) -> Role:
    if value == "prefill":
        return "prefill"
    if value == "decode":
        return "decode"
    raise ValueError(f"args.role is {value!r}; it must be prefill or decode")
