"""One TandemService as the operator sees it, and the names that follow from it.

A change of what runs in the pools (image, model, layout, pods) makes another revision, with a
RayService and a worker directory of its own. So the old pool serves until the new one is up, and
no router ever mixes the two. Sizes, classes and routers belong to no revision.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from k8s.crds.definition import GROUP, KIND, VERSION
from k8s.operator.objects import Manifest, number, text
from orchestrator.spec import ClusterSpec, WorkerPods
from orchestrator.spec.schema import DecodePool, PrefillPool

Role = Literal["prefill", "decode"]
ROLES: tuple[Role, ...] = ("prefill", "decode")

LABEL_SERVICE = f"{GROUP}/service"
LABEL_COMPONENT = f"{GROUP}/component"  # router, store, prefill, decode, head
LABEL_REVISION = f"{GROUP}/revision"
APPLIED = f"{GROUP}/applied"  # annotation: the hash of what the operator last applied
CONFIG = f"{GROUP}/config"  # annotation of router pods: the ConfigMap that they read
FINALIZER = f"{GROUP}/drain"
FIELD_MANAGER = "tandem-operator"

# Of the kubernetes section, what no worker pod is made from.
_NOT_OF_PODS = {"router", "store", "start_timeout_s", "network_policy", "monitoring"}


@dataclass(frozen=True, slots=True)
class Service:
    """A TandemService whose spec is valid; `wanted` is what its autoscaler asks for."""

    name: str
    namespace: str
    uid: str
    generation: int
    spec: ClusterSpec
    image: str
    wanted: Mapping[Role, int] = field(default_factory=dict)

    @property
    def labels(self) -> dict[str, str]:
        return {
            "app.kubernetes.io/name": "tandem",
            "app.kubernetes.io/managed-by": FIELD_MANAGER,
            LABEL_SERVICE: self.name,
        }

    @property
    def owner(self) -> dict[str, object]:
        """The owner reference that makes the server collect what is left."""
        return {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": KIND,
            "name": self.name,
            "uid": self.uid,
            "controller": True,
            "blockOwnerDeletion": True,
        }

    @property
    def store_url(self) -> str:
        """Where the worker directory is."""
        if self.spec.store == "embedded":
            return f"redis://{self.name}-store.{self.namespace}.svc:6379/0"
        return self.spec.store

    @property
    def revision(self) -> str:
        """A short hash of everything that worker pods are made from."""
        return digest({"image": self.image, "spec": self._pool_fields()})[:8]

    @property
    def pool_name(self) -> str:
        """The name of this revision's RayService."""
        return f"{self.name}-{self.revision}"

    @property
    def cluster(self) -> str:
        """The name of this revision's worker directory."""
        return f"{self.namespace}.{self.name}.{self.revision}"

    @property
    def worker_view(self) -> dict[str, object]:
        """The spec that a worker is started with: without what may change while it runs."""
        fields = self.spec.model_dump(mode="json", exclude_defaults=True)
        view = {name: dict(fields.get(name, {})) for name in ("model", "telemetry", *ROLES)}
        for role in ROLES:
            view[role].pop("workers", None)
        view["kubernetes"] = {"drain_timeout_s": self.spec.kubernetes.drain_timeout_s}
        return {name: section for name, section in view.items() if section}

    def pool(self, role: Role) -> PrefillPool | DecodePool:
        return self.spec.prefill if role == "prefill" else self.spec.decode

    def bounded(self, role: Role, workers: int) -> int:
        """So many workers, or as near to it as the spec allows."""
        limits = self.pool(role).workers
        return min(max(workers, limits.min), limits.max)

    def size(self, role: Role) -> int:
        """How many workers the pool is to have."""
        return self.bounded(role, self.wanted.get(role, 0))

    def pods(self, role: Role) -> WorkerPods:
        kubernetes = self.spec.kubernetes
        return kubernetes.prefill if role == "prefill" else kubernetes.decode

    def _pool_fields(self) -> dict[str, object]:
        # Without defaults: a later version with more fields is no reason to replace a pool.
        fields = self.spec.model_dump(mode="json", exclude_defaults=True)
        pools = {name: dict(fields.get(name, {})) for name in ("model", "telemetry", *ROLES)}
        for role in ROLES:
            pools[role].pop("workers", None)
        kubernetes = fields.get("kubernetes", {})
        pods = {name: value for name, value in kubernetes.items() if name not in _NOT_OF_PODS}
        return {**pools, "store": self.spec.store, "kubernetes": pods}


@dataclass(frozen=True, slots=True)
class Identity:
    """What is known of a TandemService even when its spec is wrong."""

    name: str
    namespace: str
    uid: str
    generation: int

    @classmethod
    def of(cls, manifest: Manifest) -> Identity:
        return cls(
            name=text(manifest, "metadata", "name"),
            namespace=text(manifest, "metadata", "namespace"),
            uid=text(manifest, "metadata", "uid"),
            generation=number(manifest, "metadata", "generation"),
        )

    def with_spec(
        self, spec: ClusterSpec, default_image: str, wanted: Mapping[Role, int] | None = None
    ) -> Service:
        image = spec.kubernetes.image or default_image
        return Service(
            self.name, self.namespace, self.uid, self.generation, spec, image, wanted or {}
        )


def digest(content: object) -> str:
    """SHA-256 of some JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
