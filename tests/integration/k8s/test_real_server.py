"""What only a real API server can tell: rules, rights, kubectl, collection, what it is asked."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from k8s.operator.kinds import BY_KIND, OWNED, TANDEM_SERVICE
from k8s.operator.objects import mapping, number, text
from tests.integration.k8s.audit import Follower, Request
from tests.integration.k8s.cluster import LAPTOP, RAY, Cluster
from tests.integration.k8s.conftest import Place
from tests.integration.k8s.operator_process import Operator, User
from tests.integration.k8s.real_server import RealServer
from tests.unit.k8s.api_server import Object
from tests.unit.k8s.test_chart import _rendered as rendered_chart

_STATUS = "tandemservices/status"
_EXAMPLES = sorted(LAPTOP.parent.glob("*.yaml"))


def _look_again(user: User, audit: Follower, times: int) -> None:
    """Have the operator look at the service, and wait until it has read all that it owns."""

    def looks(seen: Sequence[Request]) -> int:
        return sum(one.resource == "pods" for one in seen)

    for _ in range(times):
        before = looks(audit.seen)
        note: Object = {"metadata": {"annotations": {"tests.example/looks": str(before)}}}
        user.merge(TANDEM_SERVICE, "laptop", note)
        audit.wait(lambda seen, before=before: looks(seen) > before)  # type: ignore[misc]


def test_one_look_makes_a_laptop_and_the_next_ones_write_nothing(
    real_server: RealServer, real_place: Place, user: User, operator_log: Path
) -> None:
    with real_server.audit.follow(real_place.namespace) as audit:
        operator = Operator(real_place.operator, operator_log, *real_place.options())
        try:
            real_server.kubectl("apply", f"--namespace={real_place.namespace}", f"-f{LAPTOP}")
            cluster = Cluster.there(user)
            cluster.wait_seen()
            seen = audit.wait(lambda seen: _STATUS in [one.resource for one in seen])
            # Its status is the last that a look writes.
            seen = seen[: [one.resource for one in seen].index(_STATUS) + 1]
            assert [one for one in seen if one.code >= 400] == []
            calls = [one for one in seen if one.resource != "events"]
            reads = Counter(one.resource for one in calls if not one.writes)
            # Watches begin with a list of their own, before there is anything to look at.
            assert all(count <= 3 for count in reads.values()), reads
            writes = [one for one in calls if one.writes]
            made = sum(len(user.all(kind)) for kind in OWNED)
            assert made == 12
            assert len(writes) == made + 2  # the finalizer and the status
            # Printed, never asserted: how long it takes is no property of the code.
            log = operator_log.read_text(encoding="utf-8")
            print(next(line for line in log.splitlines() if "reconciled in" in line))  # noqa: T201

            cluster.run_first_pool()
            real_server.kubectl(
                "wait",
                f"--namespace={real_place.namespace}",
                "--timeout=60s",
                "--for=condition=Ready",
                "tds/laptop",
            )
            # Two looks later everything that was under way has been written.
            _look_again(user, audit, 2)
            done = len(audit.seen)
            _look_again(user, audit, 3)
            assert [one for one in audit.seen[done:] if one.writes] == []
        finally:
            operator.stop()


def test_the_chart_installs_with_plain_kubectl_apply(
    real_server: RealServer, tmp_path: Path
) -> None:
    pytest.importorskip("helm_python", reason="no helm-python-sdk: install the chart extra")
    values = {"watchNamespaces": ["default"], "service": {"enabled": True}}
    manifests = tmp_path / "chart.yaml"
    manifests.write_text(yaml.safe_dump_all(rendered_chart(values)), encoding="utf-8")
    for options in (["--dry-run=server"], []):
        said = real_server.kubectl("apply", f"-f{manifests}", *options)
        assert "tandemservice.tandem.dev/tandem" in said
    assert "unchanged" in real_server.kubectl("apply", f"-f{manifests}")


@pytest.mark.parametrize("path", _EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_admitted_and_means_what_it_says(
    real_server: RealServer, real_place: Place, path: Path
) -> None:
    real_server.kubectl("apply", f"--namespace={real_place.namespace}", f"-f{path}")
    found = json.loads(
        real_server.kubectl("get", "tds", f"--namespace={real_place.namespace}", "-ojson")
    )
    names = {text(one, "metadata", "name") for one in found["items"]}
    wanted = {
        one["metadata"]["name"] for one in yaml.safe_load_all(path.read_text(encoding="utf-8"))
    }
    assert names == wanted
    table = real_server.kubectl("get", "tds", f"--namespace={real_place.namespace}")
    assert table.split()[:7] == ["NAME", "PHASE", "PREFILL", "DECODE", "RATIO", "GOODPUT", "AGE"]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"decode": {"layout": {"kvp": 2}}}, "kvp x tpa must equal tpf x ep"),
        ({"decode": {"workers": {"min": 3, "max": 2}}}, "workers.min must not be above"),
        ({"decod": {}}, 'unknown field "spec.decod"'),
        ({"tenants": {"alice": {}}}, "tenants need a key in security.api_keys"),
        ({"classes": {"Fast": {"ttft_ms": 1, "itl_ms": 1}}}, "names in classes start with"),
        ({"autoscaling": {"mode": "sometimes"}}, 'supported values: "active", "advisory", "off"'),
        ({"kubernetes": {"drain_timeout_s": 0}}, "greater than or equal to 1"),
    ],
    ids=str,
)
def test_a_wrong_spec_is_refused_at_admission(
    real_server: RealServer, real_place: Place, tmp_path: Path, spec: object, said: str
) -> None:
    manifest = {
        "apiVersion": TANDEM_SERVICE.api_version,
        "kind": TANDEM_SERVICE.kind,
        "metadata": {"name": "wrong", "namespace": real_place.namespace},
        "spec": spec,
    }
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(manifest), encoding="utf-8")
    assert said in real_server.kubectl("apply", f"-f{path}", fails=True)


def test_kubectl_scales_decode_within_its_limits(
    real_server: RealServer, real_place: Place, user: User, operator_log: Path
) -> None:
    cluster = Cluster(user, {"decode": {"workers": {"min": 1, "max": 4}}})
    operator = Operator(real_place.operator, operator_log, *real_place.options())
    scale = ["scale", "tds/laptop", f"--namespace={real_place.namespace}"]
    try:
        cluster.run_first_pool()
        real_server.kubectl(*scale, "--replicas=3")
        user.wait(RAY, lambda: cluster.sizes() == {"prefill": 1, "decode": 3})
        said = real_server.kubectl(*scale, "--replicas=9", fails=True)
        assert "workers.min must not be above workers.max" in said
        read = real_server.kubectl(
            "get",
            "tds/laptop",
            f"--namespace={real_place.namespace}",
            "--subresource=scale",
            "-ojson",
        )
        assert number(json.loads(read), "spec", "replicas") == 3
        selector = text(json.loads(read), "status", "selector")
        assert "tandem.dev/component=decode" in selector
    finally:
        operator.stop()


def test_what_others_change_and_what_they_own_is_told_apart(
    real_server: RealServer, real_place: Place, user: User, operator_log: Path
) -> None:
    cluster = Cluster(user)
    operator = Operator(real_place.operator, operator_log, *real_place.options())
    budget, deployment = BY_KIND["PodDisruptionBudget"], BY_KIND["Deployment"]
    theirs = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "theirs", "labels": {"tandem.dev/service": "laptop"}},
    }
    try:
        cluster.run_first_pool()
        user.create(BY_KIND["ConfigMap"], theirs)
        real_server.kubectl(
            "annotate",
            f"--namespace={real_place.namespace}",
            "deployment/laptop-router",
            "theirs.example/note=1",
        )
        user.delete(budget, "laptop-router")
        user.merge(deployment, "laptop-router", {"spec": {"replicas": 5}})
        user.wait(
            deployment,
            lambda: number(user.get(deployment, "laptop-router"), "spec", "replicas") == 1,
        )
        user.wait(budget, lambda: user.get(budget, "laptop-router") is not None)
        kept = user.get(deployment, "laptop-router")
        assert text(kept, "metadata", "annotations", "theirs.example/note") == "1"
        assert user.get(BY_KIND["ConfigMap"], "theirs") is not None
    finally:
        operator.stop()


def test_without_an_operator_the_server_collects_what_the_service_owned(
    real_server: RealServer, real_place: Place, user: User, operator_log: Path
) -> None:
    if not real_server.collects:
        pytest.skip("no kube-controller-manager in KUBEBUILDER_ASSETS")
    cluster = Cluster(user)
    operator = Operator(real_place.operator, operator_log, *real_place.options())
    cluster.run_first_pool()
    operator.kill()
    user.delete(TANDEM_SERVICE, "laptop")
    assert mapping(cluster.service, "metadata")["finalizers"] == ["tandem.dev/drain"]
    # As the runbook says for an operator that is gone for good.
    user.merge(TANDEM_SERVICE, "laptop", {"metadata": {"finalizers": None}})
    for kind in OWNED:
        user.wait(kind, lambda kind=kind: user.all(kind) == [])  # type: ignore[misc]
    assert user.get(TANDEM_SERVICE, "laptop") is None
