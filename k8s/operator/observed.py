"""What the operator found in the API server, read into what the decisions need."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from k8s.operator.objects import Key, Manifest, condition, mapping, number, sequence, text
from k8s.operator.service import CONFIG, LABEL_COMPONENT, LABEL_REVISION, Role


@dataclass(frozen=True, slots=True)
class InFlight:
    """What routers still work on."""

    requests: int
    unreachable: int = 0  # routers that did not answer

    def __str__(self) -> str:
        silent = f", {self.unreachable} routers did not answer" if self.unreachable else ""
        return f"{self.requests} requests in flight{silent}"


@dataclass(frozen=True, slots=True)
class Observed:
    """All objects of one service.

    `settled` says for objects applied by this process which generation that made: the server may
    have changed what it was given, and giving it again would change nothing.
    """

    objects: Mapping[Key, Manifest] = field(default_factory=dict)
    pods: Sequence[Manifest] = ()
    missing_kinds: frozenset[str] = frozenset()
    in_flight: InFlight | None = None
    settled: Mapping[Key, str] = field(default_factory=dict)
    goodput: float | None = None  # requests a second that met both targets; None: not measured

    def of_kind(self, kind: str) -> Iterator[Manifest]:
        return (manifest for key, manifest in self.objects.items() if key.kind == kind)

    def pods_of(self, component: str, revision: str | None = None) -> list[Manifest]:
        """Pods that exist, also those that are on their way out."""
        return [
            pod
            for pod in self.pods
            if label(pod, LABEL_COMPONENT) == component
            and revision in (None, label(pod, LABEL_REVISION))
            and text(pod, "status", "phase") not in ("Succeeded", "Failed")
        ]

    @property
    def router_revisions(self) -> set[str]:
        """Of every router that still runs."""
        return {label(pod, LABEL_REVISION) for pod in self.pods_of("router")}

    @property
    def router_configs(self) -> set[str]:
        """Names of the ConfigMaps that routers still read."""
        return {text(pod, "metadata", "annotations", CONFIG) for pod in self.pods_of("router")}


def label(manifest: Manifest, name: str) -> str:
    return text(manifest, "metadata", "labels", name)


def generation(manifest: Manifest) -> str:
    """What changes when somebody changes the object: its generation where it has one."""
    count = number(manifest, "metadata", "generation")
    return f"g{count}" if count else f"r{text(manifest, 'metadata', 'resourceVersion')}"


@dataclass(frozen=True, slots=True)
class PoolState:
    """One pool of one revision, as Ray Serve reports it through KubeRay."""

    status: str  # of the Serve application; empty: not yet known
    message: str
    ready: int

    @property
    def running(self) -> bool:
        return self.status == "RUNNING"

    @property
    def failed(self) -> bool:
        return self.status in ("DEPLOY_FAILED", "UNHEALTHY")


def pool_state(
    ray_service: Manifest | None, pods: Sequence[Manifest], pods_per_worker: int, role: Role
) -> PoolState:
    """The state of a pool. `pods` are those of its group, `pods_per_worker` of them one worker.

    KubeRay names no numbers, so ready workers are ready pods while Serve calls the deployment
    healthy or in the middle of scaling, and none otherwise.
    """
    application: Mapping[str, object] = {}
    for part in ("activeServiceStatus", "pendingServiceStatus"):
        application = mapping(ray_service, "status", part, "applicationStatuses", role)
        if application:
            break
    deployment = mapping(application, "serveDeploymentStatuses", role)
    state = text(deployment, "status")
    serving = state in ("HEALTHY", "UPSCALING", "DOWNSCALING")
    ready_pods = sum(condition(pod, "Ready") == "True" for pod in pods)
    ready = ready_pods // pods_per_worker if serving else 0
    message = text(deployment, "message") or text(application, "message")
    return PoolState(text(application, "status"), message, ready)


@dataclass(frozen=True, slots=True)
class RouterState:
    """How far the Deployment of the routers is."""

    revision: str  # that its template names; empty: there is none
    config: str
    ready: int
    settled: bool  # every router is of that template, and ready


def router_state(deployment: Manifest | None) -> RouterState:
    template = mapping(deployment, "spec", "template")
    wanted = number(deployment, "spec", "replicas")
    status = mapping(deployment, "status")
    current = number(status, "observedGeneration") == number(deployment, "metadata", "generation")
    ready = number(status, "readyReplicas")
    settled = (
        deployment is not None
        and current
        and number(status, "updatedReplicas") == number(status, "replicas") == ready >= wanted
    )
    return RouterState(
        revision=label(template, LABEL_REVISION),
        config=text(template, "metadata", "annotations", CONFIG),
        ready=ready,
        settled=settled,
    )


def router_addresses(observed: Observed) -> list[str]:
    """host:port of the gRPC API of every router that runs."""
    return addresses_of(observed.pods_of("router"))


def addresses_of(routers: Sequence[Manifest]) -> list[str]:
    """host:port of the gRPC API of these pods."""
    addresses = []
    for pod in routers:
        host = text(pod, "status", "podIP")
        for container in sequence(pod, "spec", "containers"):
            for port in sequence(container, "ports"):
                if host and text(port, "name") == "grpc":
                    addresses.append(f"{host}:{number(port, 'containerPort')}")
    return addresses
