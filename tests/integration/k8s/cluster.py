"""A service named laptop, and what the parts of a cluster report about it.

Tests play KubeRay, the Deployment controller and the kubelets, by writing what they report.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

import yaml

from k8s.operator.kinds import BY_KIND, POD, TANDEM_SERVICE
from k8s.operator.objects import mapping, number, sequence, text
from k8s.operator.service import LABEL_COMPONENT, LABEL_REVISION, LABEL_SERVICE
from tests.integration.k8s.operator_process import User
from tests.unit.k8s.api_server import Object

LAPTOP = Path(__file__).parents[3] / "k8s" / "examples" / "laptop.yaml"
RAY, DEPLOYMENT = BY_KIND["RayService"], BY_KIND["Deployment"]


class Cluster:
    """Made by `user`, with sections of the example's spec replaced by those of `spec`."""

    def __init__(self, user: User, spec: Object | None = None) -> None:
        self.user = user
        manifest = yaml.safe_load(LAPTOP.read_text(encoding="utf-8"))
        manifest["spec"] |= spec or {}
        user.create(TANDEM_SERVICE, manifest)

    @classmethod
    def there(cls, user: User) -> Self:
        """One that somebody else has made."""
        cluster = cls.__new__(cls)
        cluster.user = user
        return cluster

    @property
    def service(self) -> Object:
        found = self.user.get(TANDEM_SERVICE, "laptop")
        assert found is not None
        return found

    @property
    def phase(self) -> str:
        return text(self.service, "status", "phase")

    def wait_seen(self) -> None:
        """Until the operator has reported on the latest spec."""

        def seen() -> bool:
            service = self.service
            latest = number(service, "metadata", "generation")
            return number(service, "status", "observedGeneration") == latest

        self.user.wait(TANDEM_SERVICE, seen)

    def wait_phase(self, phase: str) -> None:
        self.user.wait(TANDEM_SERVICE, lambda: self.phase == phase)

    def pools(self) -> list[str]:
        return [text(item, "metadata", "name") for item in self.user.all(RAY)]

    def report_pool(self, name: str) -> None:
        """KubeRay says that both pools run."""
        running = {"status": "RUNNING"}
        healthy = {"status": "HEALTHY"}
        statuses = {
            role: {**running, "serveDeploymentStatuses": {role: healthy}}
            for role in ("prefill", "decode")
        }
        self.user.set_status(RAY, name, {"activeServiceStatus": {"applicationStatuses": statuses}})

    def report_routers(self) -> None:
        """The Deployment controller says that the rollout is done."""
        name = "laptop-router"
        deployment = self.user.get(DEPLOYMENT, name)
        counts = ("replicas", "updatedReplicas", "readyReplicas", "availableReplicas")
        status = {"observedGeneration": number(deployment, "metadata", "generation")}
        self.user.set_status(DEPLOYMENT, name, {**status, **dict.fromkeys(counts, 1)})

    def run_first_pool(self) -> str:
        """Both pools and the router come up; the name of the RayService."""
        self.wait_seen()
        [pool] = self.pools()
        self.report_pool(pool)
        self.report_routers()
        revision = pool.split("-")[-1]
        self.user.wait(
            TANDEM_SERVICE, lambda: mapping(self.service, "status").get("revision") == revision
        )
        return pool

    def condition(self, kind: str) -> str:
        """True/Reason, or empty."""
        for entry in sequence(self.service, "status", "conditions"):
            if text(entry, "type") == kind:
                return f"{text(entry, 'status')}/{text(entry, 'reason')}"
        return ""

    def sizes(self) -> dict[str, int]:
        """What Ray Serve is told of the one pool that there is."""
        [pool] = self.user.all(RAY)
        config = yaml.safe_load(text(pool, "spec", "serveConfigV2"))
        return {
            one["name"]: one["deployments"][0]["num_replicas"] for one in config["applications"]
        }

    def router_pod(self, revision: str, address: str) -> None:
        """A pod of the router that is ready and answers at this address."""
        host, _, port = address.rpartition(":")
        labels = {
            LABEL_SERVICE: "laptop",
            LABEL_COMPONENT: "router",
            LABEL_REVISION: revision,
        }
        grpc = {"name": "grpc", "containerPort": int(port), "protocol": "TCP"}
        container = {"name": "router", "image": "none", "ports": [grpc]}
        self.user.create(
            POD,
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": "laptop-router-1", "labels": labels},
                "spec": {"containers": [container]},
            },
        )
        ready = {"type": "Ready", "status": "True"}
        status: Object = {"phase": "Running", "podIP": host, "conditions": [ready]}
        self.user.set_status(POD, "laptop-router-1", status)
