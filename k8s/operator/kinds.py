"""The kinds of objects that a service owns, and where the API serves them."""

from __future__ import annotations

from dataclasses import dataclass

from k8s.crds.definition import GROUP, PLURAL, VERSION


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind, its group and version, and its name in paths."""

    kind: str
    api_version: str
    plural: str
    optional: bool = False  # not every cluster knows it

    def path(self, namespace: str, name: str = "") -> str:
        root = "/api" if "/" not in self.api_version else "/apis"
        end = f"/{name}" if name else ""
        return f"{root}/{self.api_version}/namespaces/{namespace}/{self.plural}{end}"


TANDEM_SERVICE = Resource("TandemService", f"{GROUP}/{VERSION}", PLURAL)
POD = Resource("Pod", "v1", "pods")
EVENT = Resource("Event", "v1", "events")

OWNED = (
    Resource("ServiceAccount", "v1", "serviceaccounts"),
    Resource("ConfigMap", "v1", "configmaps"),
    Resource("Service", "v1", "services"),
    Resource("Deployment", "apps/v1", "deployments"),
    Resource("PodDisruptionBudget", "policy/v1", "poddisruptionbudgets"),
    Resource("HorizontalPodAutoscaler", "autoscaling/v2", "horizontalpodautoscalers"),
    Resource("NetworkPolicy", "networking.k8s.io/v1", "networkpolicies"),
    Resource("RayService", "ray.io/v1", "rayservices", optional=True),
    Resource("ServiceMonitor", "monitoring.coreos.com/v1", "servicemonitors", optional=True),
)
BY_KIND = {resource.kind: resource for resource in OWNED}
