"""The operator as a process, against an API server in memory, and a real one if at hand."""

from __future__ import annotations

from pathlib import Path

from k8s.operator.kinds import OWNED, TANDEM_SERVICE
from k8s.operator.objects import mapping, sequence, text
from tests.integration.k8s.cluster import DEPLOYMENT, RAY, Cluster
from tests.integration.k8s.conftest import Place
from tests.integration.k8s.operator_process import Operator, User
from tests.unit.k8s.api_server import Object


def test_a_service_lives_through_an_upgrade_a_killed_operator_and_its_end(
    place: Place, user: User, operator_log: Path
) -> None:
    cluster = Cluster(user)
    operator = Operator(place.operator, operator_log, *place.options())
    try:
        cluster.wait_seen()
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
        first = cluster.run_first_pool()

        operator.kill()
        user.merge(TANDEM_SERVICE, "laptop", {"spec": {"model": {"dtype": "bfloat16"}}})
        operator = Operator(place.operator, operator_log, *place.options())
        cluster.wait_seen()
        assert len(cluster.pools()) == 2
        place.server.cut_watches()
        [second] = set(cluster.pools()) - {first}
        cluster.report_pool(second)
        user.wait(DEPLOYMENT, lambda: _router_revision(user) == second.split("-")[-1])
        cluster.report_routers()
        user.wait(RAY, lambda: cluster.pools() == [second])

        user.delete(TANDEM_SERVICE, "laptop")
        user.wait(TANDEM_SERVICE, lambda: user.get(TANDEM_SERVICE, "laptop") is None)
        assert [item for kind in OWNED for item in user.all(kind)] == []
    finally:
        operator.stop()


def _router_revision(user: User) -> str:
    deployment = user.get(DEPLOYMENT, "laptop-router")
    return text(deployment, "metadata", "labels", "tandem.dev/revision")


def test_a_pool_that_breaks_is_said_and_so_is_that_it_is_well_again(
    place: Place, user: User, operator_log: Path
) -> None:
    cluster = Cluster(user)
    operator = Operator(place.operator, operator_log, *place.options())
    try:
        pool = cluster.run_first_pool()
        broken = {"status": "UNHEALTHY", "message": "no GPU", "serveDeploymentStatuses": {}}
        statuses = {"decode": broken, "prefill": {"status": "RUNNING"}}
        status: Object = {"activeServiceStatus": {"applicationStatuses": statuses}}
        user.set_status(RAY, pool, status)
        user.wait(TANDEM_SERVICE, lambda: cluster.condition("Degraded") == "True/PoolFailed")
        cluster.report_pool(pool)
        user.wait(TANDEM_SERVICE, lambda: cluster.condition("Degraded") == "False/AsExpected")
        assert cluster.condition("Ready") == "True/Serving"
    finally:
        operator.stop()


def test_a_wrong_spec_is_refused_or_named(place: Place, user: User, operator_log: Path) -> None:
    cluster = Cluster(user)
    operator = Operator(place.operator, operator_log, *place.options())
    try:
        cluster.wait_seen()
        change = {"spec": {"decode": {"layout": {"kvp": 2}}}}
        path = TANDEM_SERVICE.path(user.namespace, "laptop")
        status, answer = user.call("PATCH", path, change, "application/merge-patch+json")
        if status == 422:  # a server that evaluates the rules of the definition
            assert "kvp x tpa must equal tpf x ep" in text(answer, "message")
            return
        cluster.wait_phase("Invalid")
        [message] = [
            text(entry, "message")
            for entry in sequence(cluster.service, "status", "conditions")
            if text(entry, "type") == "Degraded"
        ]
        assert "decode.layout" in message
    finally:
        operator.stop()


def test_a_second_operator_waits_until_the_first_is_gone(
    place: Place, user: User, operator_log: Path, tmp_path: Path
) -> None:
    # As the chart runs it: for all namespaces, with the lease where the operator is.
    home = "default" if place.namespace == "default" else "tandem"
    options = [f"--lease-namespace={home}"]
    second_log = tmp_path / "second.log"
    first = Operator(place.operator, operator_log, *options)
    second = None
    try:
        cluster = Cluster(user)
        cluster.wait_seen()
        second = Operator(place.operator, second_log, *options)
        user.merge(TANDEM_SERVICE, "laptop", {"spec": {"router": {"processes": 2}}})
        cluster.wait_seen()
        assert "applying" not in second_log.read_text(encoding="utf-8")
        first.kill()
        user.merge(TANDEM_SERVICE, "laptop", {"spec": {"model": {"dtype": "bfloat16"}}})
        cluster.wait_seen()  # by the second, once the lease of the first has run out
        assert "applying" in second_log.read_text(encoding="utf-8")
        assert mapping(cluster.service, "status")["phase"] == "Progressing"
    finally:
        if second is not None:
            second.stop()
        else:
            first.stop()
