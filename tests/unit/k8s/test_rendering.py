"""Every object that a service becomes fits the real schema of its kind and says what it must."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from k8s.operator.objects import at, holds, mapping, sequence, text
from k8s.operator.render import everything, pool, routers
from k8s.operator.render.pools import RAY_VERSION
from k8s.operator.service import Service
from orchestrator.runtime import serve_app
from orchestrator.spec import ClusterSpec, validated
from tests.unit.k8s.schemas import problems_of

_HERE = Path(__file__).parent
_EXAMPLES = sorted((_HERE.parents[2] / "k8s" / "examples").glob("*.yaml"))
_GOLDEN = _HERE / "golden"


class _Readable(yaml.SafeDumper):
    """Texts of several lines as they are."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Readable.add_representer(str, _text)


def _service(fields: Mapping[str, object] | None = None, name: str = "demo") -> Service:
    return Service(name, "default", "uid-1", 1, validated(fields or {}), "registry.example/t:1")


def _examples() -> Iterator[Service]:
    for path in _EXAMPLES:
        for resource in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            yield _service(resource["spec"], resource["metadata"]["name"])


def _pods(service: Service) -> Iterator[Mapping[str, object]]:
    """The pod template of everything that runs."""
    for manifest in everything(service):
        if manifest["kind"] == "Deployment":
            yield mapping(manifest, "spec", "template")
        elif manifest["kind"] == "RayService":
            cluster = mapping(manifest, "spec", "rayClusterConfig")
            yield mapping(cluster, "headGroupSpec", "template")
            for group in sequence(cluster, "workerGroupSpecs"):
                yield mapping(group, "template")


def _worker_group(service: Service, role: str) -> Mapping[str, object]:
    groups = sequence(pool(service), "spec", "rayClusterConfig", "workerGroupSpecs")
    return next(cast(Mapping[str, object], g) for g in groups if text(g, "groupName") == role)


@pytest.mark.parametrize("service", list(_examples()), ids=lambda service: service.name)
def test_every_object_of_every_example_fits_its_schema(service: Service) -> None:
    for manifest in everything(service):
        assert problems_of(manifest) == [], manifest["kind"]


@pytest.mark.parametrize("service", list(_examples()), ids=lambda service: service.name)
def test_no_container_may_do_more_than_it_must(service: Service) -> None:
    for template in _pods(service):
        spec = mapping(template, "spec")
        assert mapping(spec, "securityContext")["runAsNonRoot"] is True
        assert spec.get("automountServiceAccountToken") is False or "-head" in text(
            spec, "serviceAccountName"
        )
        for container in sequence(spec, "containers"):
            security = mapping(container, "securityContext")
            assert security["readOnlyRootFilesystem"] is True
            assert security["allowPrivilegeEscalation"] is False
            assert mapping(security, "capabilities")["drop"] == ["ALL"]


def test_every_object_is_owned_and_labelled() -> None:
    for manifest in everything(_service()):
        owners = sequence(manifest, "metadata", "ownerReferences")
        assert [text(owner, "uid") for owner in owners] == ["uid-1"]
        assert text(manifest, "metadata", "labels", "tandem.dev/service") == "demo"


@pytest.mark.parametrize("kind", ["RayService", "Deployment", "ConfigMap", "Service"])
def test_the_default_service_renders_as_reviewed(kind: str) -> None:
    """After a change that is meant: delete the file, run again, and review what is written."""
    rendered = [
        manifest
        for manifest in everything(_service())
        if manifest["kind"] == kind and not text(manifest, "metadata", "name").endswith("-store")
    ]
    plain = json.loads(json.dumps(rendered))
    content = yaml.dump_all(plain, Dumper=_Readable, sort_keys=False, width=100)
    path = _GOLDEN / f"{kind.lower()}.yaml"
    if not path.exists():
        path.write_text(content, encoding="utf-8")
        pytest.fail(f"{path.name} was written: review it")
    assert content == path.read_text(encoding="utf-8")


def test_ray_serve_takes_the_file_and_builds_each_pool_from_it() -> None:
    service = _service({"prefill": {"workers": {"min": 2}}, "decode": {"workers": {"min": 3}}})
    config = ServeDeploySchema.model_validate(
        yaml.safe_load(text(pool(service), "spec", "serveConfigV2"))
    )
    sizes = {app.name: app.deployments[0].num_replicas for app in config.applications}
    assert sizes == {"prefill": 2, "decode": 3}
    for application in config.applications:
        module, _, name = application.import_path.partition(":")
        assert module == serve_app.__name__
        built = getattr(serve_app, name)(application.args)
        deployment = built._bound_deployment
        assert deployment.name == application.name
        options = deployment.ray_actor_options
        assert options["resources"] == {f"tandem_{application.name}": 1}


def test_a_pool_without_workers_has_no_application() -> None:
    service = _service({"prefill": {"workers": {"min": 0}}})
    config = yaml.safe_load(text(pool(service), "spec", "serveConfigV2"))
    assert [application["name"] for application in config["applications"]] == ["decode"]


def test_the_ray_version_is_the_one_that_images_install() -> None:
    constraints = (_HERE.parents[2] / "constraints.txt").read_text(encoding="utf-8")
    assert f"ray=={RAY_VERSION}\n" in constraints


def test_gpus_devices_and_claims_reach_the_worker_pods() -> None:
    service = next(service for service in _examples() if service.name == "rack-a")
    group = _worker_group(service, "decode")
    spec = mapping(group, "template", "spec")
    container = sequence(spec, "containers")[0]
    limits = mapping(container, "resources", "limits")
    assert limits["nvidia.com/gpu"] == "4"  # KVP 2 x TPA 2
    assert limits["rdma/rdma_shared_device_a"] == "1"
    assert at(sequence(spec, "resourceClaims")[0], "resourceClaimTemplateName") == "rack-a-channel"
    assert mapping(container, "securityContext", "capabilities")["add"] == ["IPC_LOCK"]
    assert spec["priorityClassName"] == "inference"
    start = mapping(group, "rayStartParams")
    # As Ray's autoscaler reads it: without the outer quotes and the escapes.
    assert json.loads(str(start["resources"])[1:-1].replace("\\", "")) == {"tandem_decode": 1}


def test_the_pods_of_a_worker_have_what_all_of_its_ranks_take() -> None:
    layout = {"kvp": 4, "tpa": 2, "ep": 8}
    decode = {"layout": layout, "resources": {"cpu": 3, "gpu": 1}}
    for pods, cpus, gpus in ((1, "24", "8"), (2, "12", "4")):
        fields = {"decode": decode, "kubernetes": {"decode": {"pods_per_worker": pods}}}
        group = _worker_group(_service(fields), "decode")
        assert group["numOfHosts"] == pods
        start = mapping(group, "rayStartParams")
        assert (start["num-cpus"], start["num-gpus"]) == (cpus, gpus)
        spec = mapping(group, "template", "spec")
        container = sequence(spec, "containers")[0]
        assert mapping(container, "resources", "requests")["cpu"] == cpus
        assert mapping(container, "resources", "limits")["nvidia.com/gpu"] == gpus
        # The pods of one worker stay together.
        assert ("topologySpreadConstraints" in spec) is (pods == 1)


def test_ray_places_a_worker_where_all_of_its_ranks_fit() -> None:
    service = _service({"decode": {"layout": {"kvp": 2, "ep": 2}, "resources": {"cpu": 3}}})
    config = yaml.safe_load(text(pool(service), "spec", "serveConfigV2"))
    decode = next(one for one in config["applications"] if one["name"] == "decode")
    deployment = serve_app.pool(decode["args"])._bound_deployment
    options = deployment.ray_actor_options
    assert options is not None
    assert options["num_cpus"] == 6
    bundles = deployment._replica_config.placement_group_bundles
    assert bundles == [{"CPU": 6, "tandem_decode": 1}]


def test_workers_of_one_pod_spread_over_nodes() -> None:
    spec = mapping(_worker_group(_service(), "decode"), "template", "spec")
    constraint = sequence(spec, "topologySpreadConstraints")[0]
    assert text(constraint, "topologyKey") == "kubernetes.io/hostname"


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"decode": {"workers": {"min": 4}}}, True),
        ({"prefill": {"workers": {"min": 0, "max": 9}}}, True),
        ({"router": {"processes": 3, "http": "0.0.0.0:9000"}}, True),
        ({"classes": {"only": {"ttft_ms": 1, "itl_ms": 1}}}, True),
        ({"kubernetes": {"router": {"cpu": 4}, "network_policy": False}}, True),
        ({"model": {"dtype": "bfloat16"}}, False),
        ({"decode": {"layout": {"kvp": 2, "ep": 2}}}, False),
        ({"decode": {"kv_tokens": 1024}}, False),
        ({"store": "redis://elsewhere:6379/0"}, False),
        ({"kubernetes": {"image": "other"}}, False),
        ({"kubernetes": {"decode": {"memory": "8Gi"}}}, False),
    ],
)
def test_only_what_pods_are_made_from_makes_a_new_revision(
    change: dict[str, object], same: bool
) -> None:
    before = _service()
    spec = validated(change)
    after = Service("demo", "default", "u", 2, spec, spec.kubernetes.image or before.image)
    assert (after.revision == before.revision) is same


def test_what_workers_are_started_with_does_not_change_while_they_run() -> None:
    """Ray Serve restarts an application whose arguments change."""
    small, large = _service(), _service({"decode": {"workers": {"min": 5}}})
    assert small.worker_view == large.worker_view
    assert validated(large.worker_view).kubernetes.drain_timeout_s == 600


def test_scaling_routers_restarts_none() -> None:
    one, three = (routers(_service({"router": {"processes": n}})) for n in (1, 3))
    assert mapping(one[1], "spec", "template") == mapping(three[1], "spec", "template")
    assert one[0] == three[0]


def test_a_scaled_deployment_leaves_its_size_to_the_autoscaler() -> None:
    service = _service({"kubernetes": {"router": {"max_replicas": 4}}})
    objects = {str(manifest["kind"]): manifest for manifest in everything(service)}
    assert "replicas" not in mapping(routers(service)[1], "spec")
    scaler = mapping(objects["HorizontalPodAutoscaler"], "spec")
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (1, 4)


def test_a_given_store_is_used_instead_of_an_own_one() -> None:
    service = _service({"store": "redis://valkey.platform:6379/1"})
    names = [text(manifest, "metadata", "name") for manifest in everything(service)]
    assert not any(name.endswith("-store") for name in names)
    assert "redis://valkey.platform:6379/1" in text(pool(service), "spec", "serveConfigV2")


def test_quantities_compare_by_amount() -> None:
    assert holds({"memory": "1Gi", "more": 1}, {"memory": "1024Mi"})
    assert holds({"cpu": "1"}, {"cpu": "1000m"})
    assert not holds({"cpu": "2"}, {"cpu": "1"})
    assert not holds({}, {"cpu": "1"})
    assert holds({"list": [{"a": 1, "b": 2}]}, {"list": [{"a": 1}]})
    assert not holds({"list": [1, 2]}, {"list": [1]})


def test_the_defaults_are_those_of_the_spec() -> None:
    assert _service().spec == ClusterSpec()
