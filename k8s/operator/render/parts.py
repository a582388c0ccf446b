"""Parts that several kinds of pods share: security, volumes, environment, metadata."""

from __future__ import annotations

from collections.abc import Mapping

from k8s.operator.service import (
    APPLIED,
    LABEL_COMPONENT,
    LABEL_SERVICE,
    Service,
    digest,
)

Part = dict[str, object]

POD_SECURITY: Part = {
    "runAsNonRoot": True,
    "runAsUser": 1000,
    "runAsGroup": 1000,
    "fsGroup": 1000,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def container_security(locks_memory: bool = False) -> Part:
    """Nothing that a process of ours needs not; RDMA pins memory."""
    capabilities: Part = {"drop": ["ALL"]}
    if locks_memory:
        capabilities["add"] = ["IPC_LOCK"]
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": capabilities,
    }


def metadata(service: Service, name: str, component: str, **labels: str) -> Part:
    return {
        "name": name,
        "namespace": service.namespace,
        "labels": {**service.labels, LABEL_COMPONENT: component, **labels},
    }


def selector(service: Service, component: str) -> dict[str, str]:
    """Labels that never change, since selectors of Deployments cannot."""
    return {LABEL_SERVICE: service.name, LABEL_COMPONENT: component}


def stamped(service: Service, manifest: Mapping[str, object]) -> Part:
    """The manifest with its owner, and the hash by which an unchanged one is known."""
    own = dict(manifest)
    head = own["metadata"]
    assert isinstance(head, dict)
    annotations = head.get("annotations", {})
    assert isinstance(annotations, dict)
    own["metadata"] = {
        **head,
        "ownerReferences": [service.owner],
        "annotations": {**annotations, APPLIED: digest(manifest)[:16]},
    }
    return own


def scratch_volume() -> Part:
    """The only place that a container may write to."""
    return {"name": "tmp", "emptyDir": {}}


def scratch_mount() -> Part:
    return {"name": "tmp", "mountPath": "/tmp"}  # noqa: S108 - the pod's own


def model_volume(service: Service) -> tuple[list[Part], list[Part]]:
    """The volume with checkpoints and its mount; nothing when the image holds the model."""
    volume = service.spec.kubernetes.model_volume
    if volume is None:
        return [], []
    claim = {"claimName": volume.claim, "readOnly": True}
    return (
        [{"name": "models", "persistentVolumeClaim": claim}],
        [{"name": "models", "mountPath": volume.mount_path, "readOnly": True}],
    )


def without_empty(part: Mapping[str, object]) -> Part:
    """The part without fields that say nothing: the server drops them too."""
    return {key: value for key, value in part.items() if value not in ("", None, [], {})}


def pull_secrets(service: Service) -> list[Part]:
    return [{"name": name} for name in service.spec.kubernetes.image_pull_secrets]
