"""The routers: Deployment, Service, disruption budget, autoscaler, and what scrapes them.

A router belongs to one revision: its template names that revision's worker directory, so a new
revision rolls the routers over, and each old one finishes its requests on the old pool before it
ends (`preStop` waits until it is idle).
"""

from __future__ import annotations

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
from k8s.operator.service import CONFIG, LABEL_REVISION, Service, digest

_SPEC_PATH = "/etc/tandem"
_ROUTER_SECTIONS = ("model", "classes", "telemetry", "security")
_ACCEPTING = "tandem.dev/accepting"
_GRACE_S = 30
_CPU_TARGET_PERCENT = 70


def ports(service: Service) -> tuple[int, int]:
    """The gRPC and the HTTP port; of the addresses in the spec only the ports mean something."""
    router = service.spec.router
    return int(router.grpc.rpartition(":")[2]), int(router.http.rpartition(":")[2])


def _config_text(service: Service) -> str:
    """The part of the spec that a router reads; it listens on every address of its pod."""
    grpc, http = ports(service)
    fields = service.spec.model_dump(mode="json", exclude_defaults=True)
    config = {name: fields[name] for name in _ROUTER_SECTIONS if name in fields}
    # Without the number of routers: scaling them must not restart them.
    config["router"] = {"grpc": f"0.0.0.0:{grpc}", "http": f"0.0.0.0:{http}"}
    return yaml.safe_dump(config, sort_keys=False)


def config_name(service: Service) -> str:
    """A name for each content: routers that are still draining keep the file they started with."""
    return f"{service.name}-config-{digest(_config_text(service))[:8]}"


def router_config(service: Service) -> Part:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(service, config_name(service), "router"),
        "immutable": True,
        "data": {"cluster.yaml": _config_text(service)},
    }


def router_deployment(service: Service) -> Part:
    pods = service.spec.kubernetes.router
    labels = selector(service, "router")
    spec: Part = {
        "strategy": {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1},
        },
        "selector": {"matchLabels": labels},
        "template": {
            "metadata": {
                "labels": {**service.labels, **labels, LABEL_REVISION: service.revision}
                | {_ACCEPTING: "true"},
                "annotations": {CONFIG: config_name(service)},
            },
            "spec": _router_pod(service),
        },
    }
    if pods.max_replicas <= service.spec.router.processes:
        # Otherwise the HorizontalPodAutoscaler owns this field.
        spec["replicas"] = service.spec.router.processes
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(
            service, f"{service.name}-router", "router", **{LABEL_REVISION: service.revision}
        ),
        "spec": spec,
    }


def _router_pod(service: Service) -> Part:
    kubernetes = service.spec.kubernetes
    grpc, http = ports(service)
    drain_s = kubernetes.drain_timeout_s
    volumes, mounts = model_volume(service)
    container: Part = {
        "name": "router",
        "image": kubernetes.router.image or service.image,
        "imagePullPolicy": kubernetes.image_pull_policy,
        "command": [
            "python",
            "-m",
            "orchestrator.runtime.router_pod",
            "--spec",
            f"{_SPEC_PATH}/cluster.yaml",
            "--store",
            service.store_url,
            "--cluster",
            service.cluster,
        ],
        "ports": [
            {"name": "grpc", "containerPort": grpc, "protocol": "TCP"},
            {"name": "http", "containerPort": http, "protocol": "TCP"},
        ],
        "env": [{"name": "HOME", "value": "/tmp"}],  # noqa: S108 - the pod's own
        # A router without workers is alive, and not ready.
        "startupProbe": {"tcpSocket": {"port": "http"}, "failureThreshold": 60, "periodSeconds": 1},
        "livenessProbe": {
            "httpGet": {"path": "/v1/models", "port": "http"},
            "timeoutSeconds": 5,
            "periodSeconds": 10,
        },
        "readinessProbe": {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 2},
        "lifecycle": {
            "preStop": {
                "exec": {
                    "command": [
                        "python",
                        "-m",
                        "orchestrator.runtime.router_idle",
                        "--grpc",
                        f"127.0.0.1:{grpc}",
                        "--timeout-s",
                        str(drain_s),
                    ]
                }
            }
        },
        "resources": {
            "requests": {"cpu": str(kubernetes.router.cpu), "memory": kubernetes.router.memory},
            "limits": {"memory": kubernetes.router.memory},
        },
        "securityContext": container_security(),
        "volumeMounts": [
            {"name": "spec", "mountPath": _SPEC_PATH, "readOnly": True},
            scratch_mount(),
            *mounts,
        ],
    }
    return without_empty(
        {
            "serviceAccountName": service.name,
            "automountServiceAccountToken": False,
            "securityContext": POD_SECURITY,
            "imagePullSecrets": pull_secrets(service),
            "terminationGracePeriodSeconds": drain_s + _GRACE_S,
            "nodeSelector": kubernetes.router.node_selector,
            "topologySpreadConstraints": [
                {
                    "maxSkew": 1,
                    "topologyKey": "kubernetes.io/hostname",
                    "whenUnsatisfiable": "ScheduleAnyway",
                    "labelSelector": {"matchLabels": selector(service, "router")},
                }
            ],
            "containers": [container],
            "volumes": [
                {"name": "spec", "configMap": {"name": config_name(service)}},
                scratch_volume(),
                *volumes,
            ],
        }
    )


def router_service(service: Service, accepting: bool) -> Part:
    """Where clients connect. While the service drains it selects nobody."""
    grpc, http = ports(service)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(service, service.name, "router"),
        "spec": {
            "type": service.spec.kubernetes.router.service_type,
            "selector": {
                **selector(service, "router"),
                _ACCEPTING: "true" if accepting else "false",
            },
            "ports": [
                {
                    "name": "grpc",
                    "port": grpc,
                    "targetPort": "grpc",
                    "protocol": "TCP",
                    "appProtocol": "kubernetes.io/h2c",
                },
                {"name": "http", "port": http, "targetPort": "http", "protocol": "TCP"},
            ],
        },
    }


def router_budget(service: Service) -> Part:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(service, f"{service.name}-router", "router"),
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": selector(service, "router")},
        },
    }


def router_scaler(service: Service) -> list[Part]:
    """By CPU, since that is what a router runs out of; nothing for a fixed number."""
    pods = service.spec.kubernetes.router
    if pods.max_replicas <= service.spec.router.processes:
        return []
    name = f"{service.name}-router"
    return [
        {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": metadata(service, name, "router"),
            "spec": {
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
                "minReplicas": service.spec.router.processes,
                "maxReplicas": pods.max_replicas,
                "metrics": [
                    {
                        "type": "Resource",
                        "resource": {
                            "name": "cpu",
                            "target": {
                                "type": "Utilization",
                                "averageUtilization": _CPU_TARGET_PERCENT,
                            },
                        },
                    }
                ],
                # A router that goes lets its requests finish first: be slow to send it away.
                "behavior": {"scaleDown": {"stabilizationWindowSeconds": 300}},
            },
        }
    ]


def service_monitor(service: Service) -> list[Part]:
    """For the Prometheus operator; applied only where the cluster knows the kind."""
    if not service.spec.kubernetes.monitoring:
        return []
    return [
        {
            "apiVersion": "monitoring.coreos.com/v1",
            "kind": "ServiceMonitor",
            "metadata": metadata(service, f"{service.name}-router", "router"),
            "spec": {
                "selector": {"matchLabels": selector(service, "router")},
                "endpoints": [{"port": "http", "path": "/metrics", "interval": "15s"}],
            },
        }
    ]
