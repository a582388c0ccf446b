"""The Valkey of `store: embedded`: one pod that keeps the leases of workers, in memory only.

When it is lost, workers write themselves into the next one at their next renewal; routers keep
their sessions meanwhile. So it needs neither a volume nor a second replica.
"""

from __future__ import annotations

from k8s.operator.render.parts import (
    POD_SECURITY,
    Part,
    container_security,
    metadata,
    pull_secrets,
    selector,
    without_empty,
)
from k8s.operator.service import Service

_PORT = 6379
_VALKEY_USER = 999


def store_objects(service: Service) -> list[Part]:
    """Deployment and Service; nothing when the spec names a store."""
    if service.spec.store != "embedded":
        return []
    name = f"{service.name}-store"
    labels = selector(service, "store")
    store = service.spec.kubernetes.store
    container: Part = {
        "name": "valkey",
        "image": store.image,
        "imagePullPolicy": service.spec.kubernetes.image_pull_policy,
        "args": ["valkey-server", "--save", "", "--appendonly", "no"],
        "ports": [{"name": "redis", "containerPort": _PORT, "protocol": "TCP"}],
        "readinessProbe": {"tcpSocket": {"port": "redis"}, "periodSeconds": 2},
        "livenessProbe": {"exec": {"command": ["valkey-cli", "ping"]}, "timeoutSeconds": 5},
        "resources": {
            "requests": {"cpu": "100m", "memory": store.memory},
            "limits": {"memory": store.memory},
        },
        "securityContext": container_security(),
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    pod = without_empty(
        {
            "serviceAccountName": service.name,
            "automountServiceAccountToken": False,
            "securityContext": {**POD_SECURITY, "runAsUser": _VALKEY_USER},
            "imagePullSecrets": pull_secrets(service),
            "containers": [container],
            "volumes": [{"name": "data", "emptyDir": {}}],
        }
    )
    return [
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata(service, name, "store"),
            "spec": {
                "replicas": 1,
                "strategy": {"type": "Recreate"},
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": {**service.labels, **labels}},
                    "spec": pod,
                },
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata(service, name, "store"),
            "spec": {
                "selector": labels,
                "ports": [
                    {"name": "redis", "port": _PORT, "targetPort": "redis", "protocol": "TCP"}
                ],
            },
        },
    ]
