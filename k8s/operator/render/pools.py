"""The pools of one revision: a RayService with a worker group for prefill and one for decode.

One pod is one worker, held there by a custom resource that only pods of its group have. The
operator says how many replicas Ray Serve runs; Ray's autoscaler adds the pods that they need and
takes away those that have become idle, so no pod with a live worker is ever chosen to go.

KubeRay's own upgrades are off: it would bring up and take down a second cluster without waiting
for routers. The operator does that with one RayService for each revision.
"""

from __future__ import annotations

import json

import yaml

from k8s.operator.render.parts import (
    POD_SECURITY,
    Part,
    container_security,
    metadata,
    model_volume,
    pull_secrets,
    scratch_mount,
    scratch_volume,
    selector,
    without_empty,
)
from k8s.operator.service import LABEL_COMPONENT, LABEL_REVISION, ROLES, Role, Service

RAY_VERSION = "2.60.0"
ENTRY_POINT = "orchestrator.runtime.serve_app:pool"

_GRACE_S = 30
_IDLE_S = 60
# KubeRay never updates the limits of a running cluster; the operator keeps workers.max itself.
_MAX_WORKERS = 4096
_SERVE_PORT = 8000
_NODE_AGENT_PORT = 52365


def ray_service(service: Service) -> Part:
    """The RayService of the service's revision, with both pools at their size."""
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": metadata(
            service, service.pool_name, "pools", **{LABEL_REVISION: service.revision}
        ),
        "spec": {
            "serveConfigV2": serve_config(service),
            "upgradeStrategy": {"type": "None"},
            "rayClusterConfig": {
                "rayVersion": RAY_VERSION,
                "authOptions": {"mode": "token"},
                "enableInTreeAutoscaling": True,
                "autoscalerOptions": {
                    "version": "v2",
                    "idleTimeoutSeconds": _IDLE_S,
                    "imagePullPolicy": service.spec.kubernetes.image_pull_policy,
                    "securityContext": container_security(),
                },
                "headGroupSpec": _head_group(service),
                "workerGroupSpecs": [_worker_group(service, role) for role in ROLES],
            },
        },
    }


def serve_config(service: Service) -> str:
    """Ray Serve's multi-application file: one application for each pool that has workers."""
    applications = []
    for role in ROLES:
        size = service.size(role)
        if size == 0:
            continue
        applications.append(
            {
                "name": role,
                "import_path": ENTRY_POINT,
                "route_prefix": None,
                "args": {
                    "role": role,
                    "store_url": service.store_url,
                    "cluster": service.cluster,
                    "place_on": _place(role),
                    "spec": service.worker_view,
                },
                "deployments": [{"name": role, "num_replicas": size}],
            }
        )
    config = {
        # KubeRay counts a service without any proxy as unhealthy; no request passes through it.
        "proxy_location": "HeadOnly",
        "http_options": {"host": "0.0.0.0", "port": _SERVE_PORT},  # noqa: S104 - in a pod
        "applications": applications,
    }
    return yaml.safe_dump(config, sort_keys=False)


def _place(role: Role) -> str:
    """The custom resource of pods of one group: one for each worker."""
    return f"tandem_{role}"


def _head_group(service: Service) -> Part:
    head = service.spec.kubernetes.head
    container = _container(service, "ray-head", {"cpu": str(head.cpu), "memory": head.memory})
    container["ports"] = [
        {"name": "gcs-server", "containerPort": 6379, "protocol": "TCP"},
        {"name": "dashboard", "containerPort": 8265, "protocol": "TCP"},
        {"name": "client", "containerPort": 10001, "protocol": "TCP"},
        {"name": "serve", "containerPort": _SERVE_PORT, "protocol": "TCP"},
    ]
    pod = _pod(service, container)
    pod["serviceAccountName"] = f"{service.name}-head"
    if head.node_selector:
        pod["nodeSelector"] = dict(head.node_selector)
    # Workers never run on the head, so that losing one costs no other.
    start = {"num-cpus": "0", "dashboard-host": "0.0.0.0"}  # noqa: S104 - in a pod
    return {"rayStartParams": start, "template": _template(service, "head", pod, {})}


def _worker_group(service: Service, role: Role) -> Part:
    pods = service.pods(role)
    layout, resources = service.pool(role).layout, service.pool(role).resources
    share = pods.pods_per_worker
    # The spec says what one rank takes; those of a worker share its pods.
    gpus = layout.ranks * resources.gpu // share
    limits: Part = {"memory": pods.memory}
    if gpus:
        limits[pods.gpu_resource] = str(gpus)
    limits.update({name: str(count) for name, count in sorted(pods.devices.items())})
    cpus = -(-layout.ranks * resources.cpu // share)
    container = _container(service, "ray-worker", {"cpu": str(cpus), **limits}, limits)
    container["securityContext"] = container_security(locks_memory=bool(pods.devices))
    environment = [{"name": name, "value": value} for name, value in sorted(pods.env.items())]
    container["env"] = [{"name": "HOME", "value": "/tmp"}, *environment]  # noqa: S108
    container["lifecycle"] = {"preStop": {"exec": {"command": _leave_command(service)}}}
    # KubeRay's own probe asks for a Serve proxy, which worker pods do not run.
    healthy: Part = {"httpGet": {"path": "/api/local_raylet_healthz", "port": _NODE_AGENT_PORT}}
    container["readinessProbe"] = {**healthy, "periodSeconds": 5, "timeoutSeconds": 2}
    container["livenessProbe"] = {
        **healthy,
        "initialDelaySeconds": 30,
        "periodSeconds": 5,
        "timeoutSeconds": 2,
        "failureThreshold": 120,
    }
    container["volumeMounts"] = [
        *_list(container["volumeMounts"]),
        {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 - the pod's own
    ]
    pod = _pod(service, container)
    pod["serviceAccountName"] = service.name
    pod["automountServiceAccountToken"] = False
    pod["volumes"] = [
        *_list(pod["volumes"]),
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": pods.shared_memory}},
    ]
    if pods.resource_claim_template:
        claim = "devices"
        pod["resourceClaims"] = [
            {"name": claim, "resourceClaimTemplateName": pods.resource_claim_template}
        ]
        resources_part = container["resources"]
        assert isinstance(resources_part, dict)
        resources_part["claims"] = [{"name": claim}]
    pod.update(without_empty(_placement(service, role)))
    start = {
        "num-cpus": str(cpus),
        "num-gpus": str(gpus),
        # Ray's autoscaler for KubeRay wants JSON inside a quoted string.
        "resources": json.dumps(json.dumps({_place(role): 1})),
    }
    return {
        "groupName": role,
        "replicas": 0,
        "minReplicas": 0,
        "maxReplicas": _MAX_WORKERS,
        "numOfHosts": share,
        "rayStartParams": start,
        "template": _template(service, role, pod, dict(pods.annotations)),
    }


def _placement(service: Service, role: Role) -> Part:
    """On which nodes a pool's pods may be."""
    pods = service.pods(role)
    placement: Part = {
        "nodeSelector": dict(pods.node_selector),
        "tolerations": [without_empty(taint.model_dump()) for taint in pods.tolerations],
        "runtimeClassName": pods.runtime_class,
        "priorityClassName": pods.priority_class,
    }
    if pods.spread_key and pods.pods_per_worker == 1:
        # The pods of one worker belong together; only whole workers may be spread.
        placement["topologySpreadConstraints"] = [
            {
                "maxSkew": 1,
                "topologyKey": pods.spread_key,
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": selector(service, role)},
            }
        ]
    return placement


def _leave_command(service: Service) -> list[str]:
    """Tell Ray that the node goes, and wait until its worker has left."""
    return [
        "python",
        "-m",
        "orchestrator.runtime.node_drain",
        "--timeout-s",
        str(service.spec.kubernetes.drain_timeout_s),
    ]


def _container(
    service: Service, name: str, requests: Part, limits: Part | None = None
) -> dict[str, object]:
    _, mounts = model_volume(service)
    return {
        "name": name,
        "image": service.image,
        "imagePullPolicy": service.spec.kubernetes.image_pull_policy,
        "env": [{"name": "HOME", "value": "/tmp"}],  # noqa: S108 - the pod's own
        "resources": {"requests": requests, "limits": limits or {"memory": requests["memory"]}},
        "securityContext": container_security(),
        "volumeMounts": [scratch_mount(), *mounts],
    }


def _pod(service: Service, container: Part) -> dict[str, object]:
    volumes, _ = model_volume(service)
    return without_empty(
        {
            "restartPolicy": "Never",
            "securityContext": POD_SECURITY,
            "imagePullSecrets": pull_secrets(service),
            "terminationGracePeriodSeconds": service.spec.kubernetes.drain_timeout_s + _GRACE_S,
            "containers": [container],
            "volumes": [scratch_volume(), *volumes],
        }
    )


def _template(service: Service, component: str, pod: Part, annotations: Part) -> Part:
    labels = {
        **service.labels,
        LABEL_COMPONENT: component,
        LABEL_REVISION: service.revision,
    }
    head: Part = {"labels": labels}
    if annotations:
        head["annotations"] = annotations
    return {"metadata": head, "spec": pod}


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def pool_budgets(service: Service) -> list[Part]:
    """Let node drains take one worker of a pool at a time.

    Pods of Ray have no controller that Kubernetes can scale, so only a number of pods that must
    stay is allowed; a pool of one worker has none to spare and gets no budget.
    """
    return [
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": metadata(service, f"{service.name}-{role}", role),
            "spec": {
                "minAvailable": (service.size(role) - 1) * service.pods(role).pods_per_worker,
                "selector": {"matchLabels": selector(service, role)},
            },
        }
        for role in ROLES
        if service.size(role) > 1
    ]


def accounts(service: Service) -> list[Part]:
    """Two accounts: pods that need nothing of the API get nothing.

    KubeRay binds the head's to a role of its own, for the autoscaler beside it.
    """
    return [
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": metadata(service, name, component),
            "automountServiceAccountToken": mounted,
        }
        for name, component, mounted in (
            (service.name, "account", False),
            (f"{service.name}-head", "head", True),
        )
    ]
