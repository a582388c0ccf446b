"""What only Kubernetes needs to know of a cluster: images, pods, devices, time for a drain.

It is a section of the one spec, so that a single file describes a deployment and nothing is said
twice: sizes, layouts and ports stand where they always do. `tandem up` ignores this section and
says so.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, StringConstraints, model_validator

from orchestrator.spec.section import Section

# Canonical spellings only: the API server rewrites others, and they would look like a change.
Quantity = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]*(Ki|Mi|Gi|Ti)$")]
DnsName = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$", max_length=253)
]
ShortText = Annotated[str, StringConstraints(max_length=1024)]
Labels = Annotated[dict[str, ShortText], Field(max_length=64)]


class Toleration(Section):
    """A taint that pods put up with; the fields are those of Kubernetes."""

    key: ShortText = ""
    operator: Literal["Exists", "Equal"] = "Exists"
    value: ShortText = ""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""

    @model_validator(mode="after")
    def _value_fits(self) -> Self:
        if self.operator == "Exists" and self.value:
            raise ValueError(f"operator Exists takes no value, not {self.value!r}; use Equal")
        return self


class ModelVolume(Section):
    """A claim that holds checkpoints; `model.path` lies below `mount_path`."""

    claim: DnsName
    mount_path: Annotated[str, StringConstraints(pattern=r"^/[^:]+$", max_length=1024)] = "/models"


class WorkerPods(Section):
    """The pods of one pool. `resources` of the pool says what a worker takes; this says how."""

    pods_per_worker: Annotated[int, Field(ge=1, le=64)] = 1  # a worker's ranks are split evenly
    memory: Quantity = "4Gi"
    shared_memory: Quantity = "1Gi"  # /dev/shm: Ray's object store and NIXL between ranks
    gpu_resource: ShortText = "nvidia.com/gpu"
    devices: Annotated[dict[str, PositiveInt], Field(max_length=16)] = Field(
        default_factory=dict  # other extended resources of each pod, such as rdma/hca: 1
    )
    resource_claim_template: ShortText = ""  # such as the one of a ComputeDomain on GB200
    env: Labels = Field(default_factory=dict)  # of the libraries: UCX_NET_DEVICES, NCCL_...
    annotations: Labels = Field(default_factory=dict)  # such as k8s.v1.cni.cncf.io/networks
    node_selector: Labels = Field(default_factory=dict)
    tolerations: Annotated[list[Toleration], Field(max_length=16)] = Field(default_factory=list)
    spread_key: ShortText = "kubernetes.io/hostname"  # workers of one pod spread over it
    runtime_class: ShortText = ""
    priority_class: ShortText = ""


class HeadPod(Section):
    """The pod of the Ray head, which runs no worker."""

    cpu: PositiveInt = 1
    memory: Quantity = "4Gi"
    node_selector: Labels = Field(default_factory=dict)


class RouterPods(Section):
    """The pods of the routers; `router.processes` is their least number."""

    image: ShortText = ""  # empty takes kubernetes.image; a CPU image is enough
    max_replicas: NonNegativeInt = 0  # above router.processes: scaled by CPU up to here
    cpu: PositiveInt = 1
    memory: Quantity = "2Gi"
    service_type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    node_selector: Labels = Field(default_factory=dict)


class StorePod(Section):
    """The Valkey of `store: embedded`; it keeps leases only, and nothing on disk."""

    image: ShortText = "docker.io/valkey/valkey:9-alpine"
    memory: Quantity = "256Mi"


class KubernetesSpec(Section):
    """How the operator turns the cluster into pods."""

    image: ShortText = ""  # empty takes the operator's --image
    image_pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    image_pull_secrets: Annotated[list[DnsName], Field(max_length=8)] = Field(default_factory=list)
    model_volume: ModelVolume | None = None
    head: HeadPod = Field(default_factory=HeadPod)
    prefill: WorkerPods = Field(default_factory=WorkerPods)
    decode: WorkerPods = Field(default_factory=WorkerPods)
    router: RouterPods = Field(default_factory=RouterPods)
    store: StorePod = Field(default_factory=StorePod)
    drain_timeout_s: Annotated[int, Field(ge=1, le=86400)] = 600  # then requests are given up
    start_timeout_s: Annotated[int, Field(ge=1, le=86400)] = 1800  # of a pool, before Degraded
    network_policy: bool = True
    monitoring: bool = True  # a ServiceMonitor, where the cluster knows that kind
