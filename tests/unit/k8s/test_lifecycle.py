"""A service from its first apply to the last object, in virtual time and under traffic."""

from __future__ import annotations

import pytest

from k8s.operator.kinds import OWNED
from k8s.operator.objects import mapping, text
from tests.unit.k8s.world import World


def _ready(world: World) -> bool:
    return world.phase == "Ready"


def _serving(world: World, spec: dict[str, object] | None = None) -> None:
    world.make_service(spec)
    world.start_operator()
    assert world.run(120, lambda: _ready(world)), world.service
    world.traffic = True
    world.run(20)


def _left(world: World) -> list[str]:
    return [
        f"{kind.kind} {text(item, 'metadata', 'name')}"
        for kind in OWNED
        for item in world.server.all(kind.plural)
    ]


def test_one_reconcile_makes_every_object_with_few_calls(world: World) -> None:
    world.make_service()
    world.reconcile_once()
    assert sorted(_left(world)) == [
        f"ConfigMap {text(world.server.all('configmaps')[0], 'metadata', 'name')}",
        "Deployment demo-router",
        "Deployment demo-store",
        "NetworkPolicy demo-internal",
        "NetworkPolicy demo-routers",
        "PodDisruptionBudget demo-router",
        f"RayService {text(world.server.all('rayservices')[0], 'metadata', 'name')}",
        "Service demo",
        "Service demo-store",
        "ServiceAccount demo",
        "ServiceAccount demo-head",
        "ServiceMonitor demo-router",
    ]
    reads = len(world.server.calls) - world.writes
    assert reads == 1 + len(OWNED) + 1  # itself, each kind, pods
    assert world.writes <= len(_left(world)) + 3  # finalizer, event, status


def test_an_unchanged_service_is_only_read(world: World) -> None:
    _serving(world)
    world.traffic = False
    world.run(200)  # until what is said of the traffic has become 0
    before = world.writes
    world.run(600)
    assert world.writes == before
    assert len(world.server.calls) > before  # it did look


def test_status_counts_workers_and_names_the_ratio(world: World) -> None:
    _serving(world, {"prefill": {"workers": {"min": 2}}, "decode": {"workers": {"min": 3}}})
    status = mapping(world.service, "status")
    assert status["ratio"] == "2:3"
    assert mapping(status, "decode")["summary"] == "3/3"
    assert world.condition("Ready") == "True/Serving"
    assert world.condition("Progressing") == "False/Complete"
    assert world.condition("Degraded") == "False/AsExpected"


def test_status_says_how_many_requests_a_second_met_their_targets(world: World) -> None:
    _serving(world)
    world.run(200)
    # One request a second goes in and comes out in time.
    assert float(text(world.service, "status", "goodput")) == pytest.approx(1.0, abs=0.1)
    before = world.writes
    world.run(300)
    assert world.writes == before  # steady traffic writes nothing
    world.traffic = False
    assert world.run(200, lambda: text(world.service, "status", "goodput") == "0")


def test_scaling_changes_the_pool_and_restarts_nobody(world: World) -> None:
    _serving(world)
    pool = text(world.server.all("rayservices")[0], "metadata", "name")
    routers = [text(pod, "metadata", "name") for pod in world._pods_named("demo-router-")]
    world.change(decode={"workers": {"min": 3}})
    assert world.run(120, lambda: _ready(world) and world.condition("Progressing")[0] == "F")
    world.run(30)
    assert mapping(world.service, "status", "decode")["ready"] == 3
    assert [text(item, "metadata", "name") for item in world.server.all("rayservices")] == [pool]
    assert [text(pod, "metadata", "name") for pod in world._pods_named("demo-router-")] == routers
    assert world.lost == []


def test_an_upgrade_loses_no_request_and_removes_the_old_pool(world: World) -> None:
    _serving(world)
    old = text(world.server.all("rayservices")[0], "metadata", "name")
    world.change(kubernetes={"image": "registry.example/tandem:2"})
    assert world.run(30, lambda: len(world.server.all("rayservices")) == 2)
    assert world.run(300, lambda: len(world.server.all("rayservices")) == 1 and _ready(world))
    assert text(world.server.all("rayservices")[0], "metadata", "name") != old
    assert len(world.server.all("configmaps")) == 1
    world.run(60)
    assert world.lost == []
    assert world.served > 50


def test_the_old_pool_stays_while_one_of_its_routers_has_work(world: World) -> None:
    _serving(world)
    old = text(world.server.all("rayservices")[0], "metadata", "name")
    world.traffic = False
    router = text(world._pods_named("demo-router-")[0], "metadata", "name")
    world.requests[router].finishes.append(world.loop.now_s + 300)
    world.change(model={"dtype": "bfloat16"})
    assert world.run(120, lambda: world.condition("Draining") == "True/OldPool")
    world.run(100)
    assert world.server.get("rayservices", old) is not None
    assert world.run(300, lambda: world.server.get("rayservices", old) is None)
    assert world.lost == []


def test_a_bad_upgrade_keeps_the_old_pool_serving_and_can_be_taken_back(world: World) -> None:
    _serving(world)
    old = text(world.server.all("rayservices")[0], "metadata", "name")
    world.broken_images.add("registry.example/tandem:broken")
    world.change(kubernetes={"image": "registry.example/tandem:broken", "start_timeout_s": 100})
    assert world.run(200, lambda: world.condition("Degraded") == "True/StartTimedOut")
    assert world.condition("Ready") == "True/Serving"
    world.change(kubernetes={"image": ""})
    assert world.run(100, lambda: _ready(world))
    assert [text(item, "metadata", "name") for item in world.server.all("rayservices")] == [old]
    assert world.lost == []


def test_a_first_pool_that_never_starts_gives_way_to_its_correction(world: World) -> None:
    world.broken_images.add("registry.example/tandem:broken")
    world.make_service({"kubernetes": {"image": "registry.example/tandem:broken"}})
    world.start_operator()
    world.run(60)
    world.change(kubernetes={"image": "registry.example/tandem:2"})
    assert world.run(200, lambda: _ready(world))
    assert len(world.server.all("rayservices")) == 1


def test_deletion_drains_first_and_leaves_nothing(world: World) -> None:
    _serving(world)
    in_flight = sum(len(pod.finishes) for pod in world.requests.values())
    assert in_flight > 0
    world.server.remove("tandemservices", "demo")
    assert world.run(10, lambda: world.condition("SafeToDelete") == "False/InFlight")
    assert world.server.all("rayservices")  # the workers finish what the routers have
    assert world.run(200, lambda: world.service is None)
    assert _left(world) == []
    assert world.server.all("pods") == []
    assert world.lost == []


def test_deletion_does_not_wait_for_ever_for_a_node_that_died(world: World) -> None:
    _serving(world, {"kubernetes": {"drain_timeout_s": 60}})
    world.traffic = False
    router = text(world._pods_named("demo-router-")[0], "metadata", "name")
    world.requests[router].finishes.append(world.loop.now_s + 1e6)
    world.server.remove("tandemservices", "demo")
    assert world.run(600, lambda: world.service is None)
    assert world.loop.now_s > 120


def test_a_wrong_spec_names_the_field_and_what_serves_goes_on(world: World) -> None:
    _serving(world)
    before = _left(world)
    world.change(decode={"layout": {"kvp": 2}})
    assert world.run(30, lambda: world.phase == "Invalid")
    assert world.condition("Degraded") == "True/InvalidSpec"
    assert world.condition("Ready") == "True/Serving"
    conditions = mapping(world.service, "status")["conditions"]
    assert isinstance(conditions, list)
    message = next(entry["message"] for entry in conditions if entry["type"] == "Degraded")
    assert "decode.layout" in message
    assert "kvp x tpa" in message
    world.run(120)
    assert _left(world) == before
    world.change(decode={"layout": {}})
    assert world.run(60, lambda: _ready(world))


def test_what_is_not_built_yet_is_said_and_not_half_done(world: World) -> None:
    world.make_service({"decode": {"resources": {"gpu": 2}}})
    world.start_operator()
    world.run(10)
    assert world.condition("Degraded") == "True/NotBuilt"
    assert _left(world) == []


def test_without_kuberay_nothing_is_half_made_and_the_fix_is_named() -> None:
    world = World(without=("rayservices", "servicemonitors"))
    world.make_service()
    world.start_operator()
    world.run(10)
    assert world.condition("Degraded") == "True/KubeRayMissing"
    assert _left_known(world) == []
    world.server.kinds["rayservices"] = ("RayService", "ray.io/v1")
    assert world.run(120, lambda: _ready(world))
    world.close()


def _left_known(world: World) -> list[object]:
    known = [kind for kind in OWNED if kind.plural in world.server.kinds]
    return [item for kind in known for item in world.server.all(kind.plural)]


def test_what_somebody_else_changed_is_put_right(world: World) -> None:
    _serving(world)

    def open_up(item: dict[str, object]) -> None:
        item["spec"]["ingress"] = [{}]  # type: ignore[index]

    world.server.edit("networkpolicies", "demo-internal", open_up)
    world.server.remove("poddisruptionbudgets", "demo-router")
    world.run(90)
    policy = world.server.get("networkpolicies", "demo-internal")
    assert mapping(policy, "spec")["ingress"] != [{}]
    assert world.server.get("poddisruptionbudgets", "demo-router") is not None


def test_objects_that_only_carry_our_label_are_left_alone(world: World) -> None:
    _serving(world)
    labels = {"tandem.dev/service": "demo"}
    world.server.create("configmaps", {"metadata": {"name": "theirs", "labels": labels}})
    world.run(120)
    assert world.server.get("configmaps", "theirs") is not None
    assert _ready(world)


def test_events_tell_the_story_once(world: World) -> None:
    _serving(world)
    world.run(300)
    told = [(event["reason"], event["type"]) for event in world.server.all("events")]
    assert len(told) == len(set(told))
    assert ("Serving", "Normal") in told
    assert not any(kind == "Warning" for _, kind in told)
