"""The operator as a process, against API servers over HTTP: in memory, and a real one if at hand.

The test plays KubeRay, the Deployment controller and the kubelets, by writing what they report.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from k8s.operator.kinds import BY_KIND, OWNED, TANDEM_SERVICE
from k8s.operator.objects import mapping, number, text
from tests.integration.k8s.memory_server import MemoryServer
from tests.integration.k8s.operator_process import Operator, User
from tests.integration.k8s.real_server import RealServer, assets
from tests.unit.k8s.api_server import Object

_LAPTOP = Path(__file__).parents[3] / "k8s" / "examples" / "laptop.yaml"
_RAY, _DEPLOYMENT = BY_KIND["RayService"], BY_KIND["Deployment"]

Server = MemoryServer | RealServer


@pytest.fixture(params=["in memory", "kube-apiserver"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    if request.param == "kube-apiserver" and assets() is None:
        folder = os.environ.get("KUBEBUILDER_ASSETS", "not set")
        pytest.skip(f"no kube-apiserver and etcd in KUBEBUILDER_ASSETS ({folder})")
    server: Server = (
        MemoryServer(tmp_path) if request.param == "in memory" else RealServer(tmp_path)
    )
    yield server
    server.close()


@pytest.fixture
def user(server: Server) -> Iterator[User]:
    user = User(server.kubeconfig)
    yield user
    user.close()


class Cluster:
    """A service named laptop, and what the parts of a cluster report about it."""

    def __init__(self, user: User) -> None:
        self.user = user
        user.create(TANDEM_SERVICE, yaml.safe_load(_LAPTOP.read_text(encoding="utf-8")))

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
        return [text(item, "metadata", "name") for item in self.user.all(_RAY)]

    def report_pool(self, name: str) -> None:
        """KubeRay says that both pools run."""
        running = {"status": "RUNNING"}
        healthy = {"status": "HEALTHY"}
        statuses = {
            role: {**running, "serveDeploymentStatuses": {role: healthy}}
            for role in ("prefill", "decode")
        }
        self.user.set_status(_RAY, name, {"activeServiceStatus": {"applicationStatuses": statuses}})

    def report_routers(self) -> None:
        """The Deployment controller says that the rollout is done."""
        name = "laptop-router"
        deployment = self.user.get(_DEPLOYMENT, name)
        counts = ("replicas", "updatedReplicas", "readyReplicas", "availableReplicas")
        status = {"observedGeneration": number(deployment, "metadata", "generation")}
        self.user.set_status(_DEPLOYMENT, name, {**status, **dict.fromkeys(counts, 1)})


@pytest.fixture
def operator_log(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "operator.log"
    path.touch()
    yield path
    print(path.read_text(encoding="utf-8"))  # noqa: T201 - shown when the test fails


def test_a_service_lives_through_an_upgrade_a_killed_operator_and_its_end(
    server: Server, user: User, operator_log: Path
) -> None:
    cluster = Cluster(user)
    began = time.monotonic()
    operator = Operator(server.kubeconfig, operator_log)
    try:
        cluster.wait_seen()
        # Printed, never asserted: how long a laptop takes is no property of the code.
        print(f"first report after {time.monotonic() - began:.2f} s")  # noqa: T201
        made = {kind.kind: len(user.all(kind)) for kind in OWNED}
        assert made == {
            "ServiceAccount": 2,
            "ConfigMap": 1,
            "Service": 2,
            "Deployment": 2,
            "PodDisruptionBudget": 1,
            "HorizontalPodAutoscaler": 0,
            "NetworkPolicy": 2,
            "RayService": 1,
            "ServiceMonitor": 1,
        }
        [first] = cluster.pools()
        cluster.report_pool(first)
        cluster.report_routers()
        user.wait(
            TANDEM_SERVICE,
            lambda: mapping(cluster.service, "status").get("revision") == first.split("-")[-1],
        )

        operator.kill()
        user.merge(TANDEM_SERVICE, "laptop", {"spec": {"model": {"dtype": "bfloat16"}}})
        operator = Operator(server.kubeconfig, operator_log)
        cluster.wait_seen()
        assert len(cluster.pools()) == 2
        server.cut_watches()
        [second] = set(cluster.pools()) - {first}
        cluster.report_pool(second)
        user.wait(_DEPLOYMENT, lambda: _router_revision(user) == second.split("-")[-1])
        cluster.report_routers()
        user.wait(_RAY, lambda: cluster.pools() == [second])

        user.delete(TANDEM_SERVICE, "laptop")
        user.wait(TANDEM_SERVICE, lambda: user.get(TANDEM_SERVICE, "laptop") is None)
        assert [item for kind in OWNED for item in user.all(kind)] == []
    finally:
        operator.stop()


def _router_revision(user: User) -> str:
    deployment = user.get(_DEPLOYMENT, "laptop-router")
    return text(deployment, "metadata", "labels", "tandem.dev/revision")


def test_a_wrong_spec_is_refused_or_named(server: Server, user: User, operator_log: Path) -> None:
    cluster = Cluster(user)
    operator = Operator(server.kubeconfig, operator_log)
    try:
        cluster.wait_seen()
        change = {"spec": {"decode": {"layout": {"kvp": 2}}}}
        path = TANDEM_SERVICE.path("default", "laptop")
        status, answer = user.call("PATCH", path, change, "application/merge-patch+json")
        if status == 422:  # a server that evaluates the rules of the definition
            assert "kvp x tpa must equal tpf x ep" in text(answer, "message")
            return
        cluster.wait_phase("Invalid")
        [message] = [
            str(entry["message"])
            for entry in mapping(cluster.service, "status")["conditions"]  # type: ignore[attr-defined]
            if entry["type"] == "Degraded"
        ]
        assert "decode.layout" in message
    finally:
        operator.stop()


def test_a_second_operator_waits_until_the_first_is_gone(
    server: Server, user: User, operator_log: Path, tmp_path: Path
) -> None:
    lease = "--lease-namespace=default"
    second_log = tmp_path / "second.log"
    first = Operator(server.kubeconfig, operator_log, lease)
    second = None
    try:
        cluster = Cluster(user)
        cluster.wait_seen()
        second = Operator(server.kubeconfig, second_log, lease)
        user.merge(TANDEM_SERVICE, "laptop", {"spec": {"router": {"processes": 1}}})
        cluster.wait_seen()
        assert "applying" not in second_log.read_text(encoding="utf-8")
        first.kill()
        user.merge(TANDEM_SERVICE, "laptop", {"spec": {"model": {"dtype": "bfloat16"}}})
        cluster.wait_seen()  # by the second, once the lease of the first has run out
        assert "applying" in second_log.read_text(encoding="utf-8")
    finally:
        if second is not None:
            second.stop()
        else:
            first.stop()
