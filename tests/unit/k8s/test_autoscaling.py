"""The autoscaler of a service: it writes its wish into the status, and the operator obeys it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping
from typing import TypeVar, cast

import pytest
import yaml

from k8s.operator.objects import condition, mapping, number, sequence, text
from k8s.operator.scaling import DecisionRow, Pools, askable
from k8s.operator.service import LABEL_COMPONENT, LABEL_REVISION, ROLES, Role, Service
from orchestrator.cli.operator_sizer import PolicySizer
from orchestrator.errors import UserError
from orchestrator.spec import validated
from protos.tandem.v1 import admin_pb2
from tests.unit.k8s.admission import resource_schema
from tests.unit.k8s.api_server import Answer, Call, Object, OperatorKilledError, refuse
from tests.unit.k8s.schemas import structural_problems
from tests.unit.k8s.world import World

_T = TypeVar("_T")


def _spec(mode: str, most: int = 6) -> dict[str, object]:
    workers = {"workers": {"min": 1, "max": most}}
    return {
        "autoscaling": {"mode": mode, "period_s": 5},
        "prefill": workers,
        "decode": dict(workers),
    }


def _serving(world: World, mode: str = "active", most: int = 6) -> None:
    world.make_service(_spec(mode, most))
    world.start_operator()
    assert world.run(120, lambda: world.phase == "Ready"), world.service


def _sizes(world: World) -> dict[str, int]:
    """What Ray Serve is told."""
    [pool] = world.server.all("rayservices")
    config = yaml.safe_load(text(pool, "spec", "serveConfigV2"))
    return {one["name"]: one["deployments"][0]["num_replicas"] for one in config["applications"]}


def _scaling_writes(world: World) -> int:
    status = "/tandemservices/demo/status"
    return sum(call.path.endswith(status) for call in world.server.calls)


def _events(world: World, reason: str) -> list[str]:
    return [
        text(event, "message")
        for event in world.server.all("events")
        if text(event, "reason") == reason
    ]


def test_both_pools_follow_one_decision_and_the_operator_says_so(world: World) -> None:
    _serving(world)
    world.run(30)
    before = _scaling_writes(world)
    world.wish = {"prefill": 2, "decode": 4}
    assert world.run(20, lambda: world.wish is None)
    assert _scaling_writes(world) == before + 1  # both counts and the decision, before all else
    assert world.run(60, lambda: mapping(world.service, "status")["ratio"] == "2:4")
    assert world.run(60, lambda: world.condition("Progressing") == "False/Complete")
    assert _sizes(world) == {"prefill": 2, "decode": 4}
    status = mapping(world.service, "status")
    assert mapping(status, "decode")["summary"] == "4/4"
    assert status["decision"] == "scale-1"
    assert [told.partition(":")[0] for told in _events(world, "Scaled")] == ["scale-1"]
    budget = world.server.get("poddisruptionbudgets", "demo-decode")
    assert mapping(budget, "spec")["minAvailable"] == 3
    # The floor stays the user's, and what is written fits the definition.
    assert number(world.service, "spec", "decode", "workers", "min") == 1
    schema = mapping(resource_schema(), "properties", "status")
    assert structural_problems(schema, {**status, "metadata": {}}) == []


def test_a_wish_outside_of_the_limits_goes_as_far_as_they_allow(world: World) -> None:
    _serving(world)
    world.wish = {"prefill": 0, "decode": 99}
    assert world.run(60, lambda: _sizes(world) == {"prefill": 1, "decode": 6})


def test_advice_is_told_and_changes_nothing(world: World) -> None:
    _serving(world, "advisory")
    world.wish = {"prefill": 3, "decode": 3}
    assert world.run(30, lambda: _events(world, "ScalingAdvised") != [])
    world.run(60)
    assert _sizes(world) == {"prefill": 1, "decode": 1}
    assert len(_events(world, "ScalingAdvised")) == 1
    assert mapping(world.service, "status")["decision"] == "scale-1"


def test_a_service_without_autoscaling_is_not_followed(world: World) -> None:
    _serving(world, "off")
    world.wish = {"prefill": 3, "decode": 3}
    world.run(60)
    assert world.wish is not None
    assert _sizes(world) == {"prefill": 1, "decode": 1}


def test_what_was_decided_ends_with_the_autoscaler(world: World) -> None:
    _serving(world)
    world.wish = {"prefill": 2, "decode": 3}
    assert world.run(60, lambda: _sizes(world) == {"prefill": 2, "decode": 3})
    world.change(autoscaling={"mode": "off"})
    assert world.run(60, lambda: _sizes(world) == {"prefill": 1, "decode": 1})
    assert world.run(10, lambda: "scaling" not in mapping(world.service, "status"))
    assert world.sizers_closed == 1
    before = world.writes
    world.run(120, lambda: world.condition("Progressing") == "False/Complete")
    world.run(60)
    settled = world.writes
    world.run(120)
    assert (world.writes, settled > before) == (settled, True)


def test_the_floor_that_a_user_raises_counts_at_once(world: World) -> None:
    _serving(world)
    world.wish = {"prefill": 1, "decode": 2}
    assert world.run(60, lambda: _sizes(world)["decode"] == 2)
    world.change(decode={"workers": {"min": 4, "max": 6}})
    assert world.run(60, lambda: _sizes(world)["decode"] == 4)


def test_an_upgrade_comes_up_at_the_size_that_is_needed_and_is_not_judged(world: World) -> None:
    _serving(world)
    world.wish = {"prefill": 2, "decode": 3}
    assert world.run(60, lambda: _sizes(world) == {"prefill": 2, "decode": 3})
    world.change(kubernetes={"image": "registry.example/tandem:2"})
    assert world.run(30, lambda: len(world.server.all("rayservices")) == 2)
    for pool in world.server.all("rayservices"):
        assert text(pool, "spec", "serveConfigV2").count("num_replicas: 3") == 1
    assert world.run(300, lambda: world.settled)
    assert _sizes(world) == {"prefill": 2, "decode": 3}


def test_an_operator_that_starts_again_keeps_sizes_and_goes_on_counting(world: World) -> None:
    _serving(world)
    world.wish = {"prefill": 2, "decode": 2}
    assert world.run(60, lambda: _sizes(world)["decode"] == 2)
    world.kill_operator()
    world.start_operator()
    world.run(60)
    assert _sizes(world) == {"prefill": 2, "decode": 2}
    world.wish = {"prefill": 2, "decode": 5}
    assert world.run(60, lambda: mapping(world.service, "status").get("decision") == "scale-2")
    assert _sizes(world) == {"prefill": 2, "decode": 5}


@pytest.mark.parametrize("status", [409, 410, 429, 500, 0])
def test_a_wish_that_the_server_refuses_is_written_later(world: World, status: int) -> None:
    _serving(world)
    count = itertools.count()

    def fault(call: Call) -> Answer | None:
        return refuse(status) if call.writes and next(count) < 5 else None

    world.server.fault = fault
    world.wish = {"prefill": 2, "decode": 3}
    assert world.run(300, lambda: _sizes(world) == {"prefill": 2, "decode": 3})
    assert world.run(120, lambda: mapping(world.service, "status").get("decision") == "scale-1")


@pytest.mark.parametrize("at_write", range(6))
def test_an_operator_killed_in_the_middle_of_a_decision_loses_at_most_the_wish(
    world: World, at_write: int
) -> None:
    _serving(world)
    writes = itertools.count()

    def fault(call: Call) -> Answer | None:
        if call.writes and next(writes) == at_write:
            raise OperatorKilledError
        return None

    world.server.fault = fault
    world.wish = {"prefill": 2, "decode": 3}
    world.run(40)
    if not world.operator_runs:
        world.start_operator()
    world.run(30)
    world.wish = {"prefill": 2, "decode": 3}  # traffic is still what it was
    assert world.run(200, lambda: _sizes(world) == {"prefill": 2, "decode": 3})
    ids = [text(one, "id") for one in sequence(world.service, "status", "scaling", "decisions")]
    assert len(ids) == len(set(ids))


def test_a_deleted_service_is_followed_no_more(world: World) -> None:
    _serving(world)
    world.server.remove("tandemservices", "demo")
    assert world.run(200, lambda: world.service is None)
    assert world.sizers_closed == 1
    assert world._autoscaling is not None
    assert world._autoscaling._followed == {}


def _pod(revision: str, ready: bool = True, **metadata: object) -> Object:
    labels = {LABEL_COMPONENT: "router", LABEL_REVISION: revision}
    port = {"name": "grpc", "containerPort": 50051}
    return {
        "metadata": {"labels": labels, **metadata},
        "spec": {"containers": [{"ports": [port]}]},
        "status": {
            "podIP": "10.0.0.1",
            "conditions": [{"type": "Ready", "status": str(ready)}],
        },
    }


def test_routers_are_asked_when_all_of_them_know_the_same_pool() -> None:
    assert askable([_pod("a"), _pod("a", ready=False)]) == ["10.0.0.1:50051"]
    assert askable([_pod("a"), _pod("b")]) == []
    assert askable([_pod("a", deletionTimestamp="2026-01-01T00:00:00Z")]) == []
    assert askable([]) == []


def test_the_status_keeps_few_decisions_each_as_it_ended() -> None:
    service = Service("demo", "default", "u", 1, validated(_spec("active")), "image")
    pools = Pools({}, service, list)
    assert pools.take_unwritten() is None
    counts: dict[Role, int] = {"prefill": 1, "decode": 1}
    for number_ in [*range(1, 12), 11]:
        pools.note(DecisionRow(number_, "", "", "", f"as {number_}", counts, counts, ()))
    written = pools.take_unwritten()
    assert written is not None
    rows = cast(list[Mapping[str, object]], written["decisions"])
    assert [row["id"] for row in rows] == [f"scale-{n}" for n in range(4, 12)]
    again = Pools({"status": {"scaling": written}}, service, list)
    assert again.last_number == 11


class Traffic:
    """Routers of the world as the policy sees them: so many requests a second arrive."""

    def __init__(self, world: World, pools: Pools) -> None:
        self._world = world
        self._pools = pools
        self._arrived = 0.0
        self._as_of_s = 0.0
        self.rate_rps = 0.0

    def ask(self) -> dict[str, admin_pb2.GetStatusResponse]:
        addresses = self._pools.routers()
        if not addresses:
            raise UserError("no router can be asked", "")
        now_s = self._world.loop.now_s
        self._arrived += self.rate_rps * (now_s - self._as_of_s)
        self._as_of_s = now_s
        arrived, bins = int(self._arrived), [0] * 44
        bins[16] = arrived  # about 300 tokens
        return {
            addresses[0]: admin_pb2.GetStatusResponse(
                workers=self._workers(),
                traffic=admin_pb2.Traffic(
                    arrived=arrived,
                    prompt_tokens=300 * arrived,
                    prompt_bins=bins,
                    finished=arrived,
                    answer_tokens=100 * arrived,
                    answer_squares=1e4 * arrived,
                    ended_prompt_tokens=300 * arrived,
                ),
            )
        }

    def flip(self, worker_id: str, role: Role) -> admin_pb2.FlipResponse:
        raise AssertionError("layouts differ, so nobody can take the other role")

    def _workers(self) -> list[admin_pb2.WorkerStatus]:
        found = []
        for pod in self._world.server.all("pods"):
            role = text(pod, "metadata", "labels", LABEL_COMPONENT)
            if role in ROLES and condition(pod, "Ready") == "True":
                name = f"{role}-{text(pod, 'metadata', 'name')}"
                one = admin_pb2.WorkerStatus(worker_id=name, role=role, connected=True)
                one.duty = "serving"
                found.append(one)
        return found


def test_the_policy_sizes_a_service_for_its_traffic_and_lets_go_of_it_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def at_once(call: Callable[..., _T], *args: object) -> _T:
        return call(*args)

    # A thread would take real time, of which a loop with a virtual clock has none.
    monkeypatch.setattr(asyncio, "to_thread", at_once)
    made: list[Traffic] = []

    def sizer(pools: Pools) -> PolicySizer:
        made.append(Traffic(world, pools))
        return PolicySizer(pools, made[-1], world.now)

    world.sizers = sizer
    world.make_service(
        _spec("active", most=8) | {"autoscaling": {"mode": "active", "role_flip": False}}
    )
    world.start_operator()
    assert world.run(120, lambda: world.phase == "Ready")
    [traffic] = made
    traffic.rate_rps = 1.0
    world.run(120)
    small = _sizes(world)
    traffic.rate_rps = 400.0
    assert world.run(300, lambda: sum(_sizes(world).values()) > sum(small.values()) + 1)
    world.run(200)
    grown, decided = _sizes(world), mapping(world.service, "status")["decision"]
    world.run(300)
    assert (_sizes(world), mapping(world.service, "status")["decision"]) == (grown, decided)
    traffic.rate_rps = 0.0
    assert world.run(600, lambda: _sizes(world) == {"prefill": 1, "decode": 1})
    told = cast(
        list[Mapping[str, object]], sequence(world.service, "status", "scaling", "decisions")
    )
    assert "requests/s" in str(told[0]["lines"])
    assert told[0]["outcome"] == f"the resource asks for {_words(told[0]['after'])}"


def _words(after: object) -> str:
    counts = cast(Mapping[str, int], after)
    return f"{counts['prefill']} prefill, {counts['decode']} decode workers"
