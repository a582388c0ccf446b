"""The shell around the policy: it acts on pools and roles, keeps a journal, or only advises."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from orchestrator.autoscaler.decisions import Decision
from orchestrator.autoscaler.journal import Journal, read_decisions
from orchestrator.autoscaler.live import LiveObserver, ground_of_spec
from orchestrator.autoscaler.loop import AutoscalerLoop
from orchestrator.autoscaler.observation import Change, Observation
from orchestrator.autoscaler.starting import autoscaler_of
from orchestrator.errors import UserError
from orchestrator.spec import load_spec
from protos.tandem.v1 import admin_pb2, common_pb2
from router.core.events import Role


def worker(name: str, role: str, duty: str = "serving") -> admin_pb2.WorkerStatus:
    return admin_pb2.WorkerStatus(worker_id=name, role=role, connected=True, duty=duty)


def status(arrived: int, *workers: admin_pb2.WorkerStatus) -> admin_pb2.GetStatusResponse:
    bins = [0] * 44
    bins[20] = arrived
    return admin_pb2.GetStatusResponse(
        queued_requests=1,
        workers=workers,
        traffic=admin_pb2.Traffic(
            arrived=arrived, prompt_tokens=1000 * arrived, prompt_bins=bins, finished=arrived
        ),
    )


def test_what_several_routers_say_is_added_up_and_told_as_what_came_since() -> None:
    observer = LiveObserver()
    here = worker("prefill-a", "prefill"), worker("decode-a", "decode")
    deployed: dict[Role, int] = {"prefill": 1, "decode": 2}
    first = observer.observe(10.0, {"a": status(5, *here), "b": status(7, *here)}, deployed)
    assert first.traffic.arrived == 0
    second = observer.observe(15.0, {"a": status(8, *here), "b": status(9, *here)}, deployed)
    assert second.traffic.arrived == 5
    assert second.traffic.prompt_bins == {20: 5}
    assert second.period_s == 5.0
    assert second.queued_requests == 2
    assert dict(second.serving) == {"prefill": 1, "decode": 1}
    assert dict(second.coming) == {"prefill": 0, "decode": 1}


def test_routers_that_come_and_go_are_no_traffic() -> None:
    observer = LiveObserver()
    deployed: dict[Role, int] = {"prefill": 1, "decode": 1}
    observer.observe(0.0, {"a": status(500)}, deployed)
    grown = observer.observe(5.0, {"a": status(503), "b": status(900)}, deployed)
    assert (grown.traffic.arrived, grown.traffic.prompt_bins) == (3, {20: 3})
    alone = observer.observe(10.0, {"b": status(904)}, deployed)
    assert alone.traffic.arrived == 4
    back = observer.observe(15.0, {"a": status(600), "b": status(905)}, deployed)
    assert back.traffic.arrived == 1
    begun_again = observer.observe(20.0, {"a": status(7), "b": status(906)}, deployed)
    assert begun_again.traffic.arrived == 1


def test_a_worker_that_flips_counts_in_the_role_that_it_will_have() -> None:
    seen = LiveObserver().observe(
        0.0,
        {"a": status(0, worker("decode-a", "decode", "flipping"), worker("decode-b", "decode"))},
        {"prefill": 0, "decode": 2},
    )
    assert (seen.expected("prefill"), seen.expected("decode")) == (1, 1)
    flipped = LiveObserver().observe(
        0.0, {"a": status(0, worker("decode-a", "prefill"))}, {"prefill": 0, "decode": 1}
    )
    assert (flipped.expected("prefill"), flipped.expected("decode")) == (1, 0)


@pytest.mark.parametrize(
    ("mode", "most", "runs"),
    [("active", 4, True), ("advisory", 4, True), ("off", 4, False), ("active", 1, False)],
)
def test_fixed_pools_and_mode_off_have_no_autoscaler(
    tmp_path: Path, mode: str, most: int, runs: bool
) -> None:
    pool = {"engine": "simulated", "workers": {"min": 1, "max": most}}
    spec = load_spec(None, {"autoscaling.mode": mode, "prefill": pool, "decode": pool})
    assert (autoscaler_of(spec, tmp_path, list) is not None) == runs


def test_the_spec_gives_limits_targets_and_times() -> None:
    ground = ground_of_spec(load_spec(None, {"prefill.workers": {"min": 2, "max": 5}}))
    assert (ground.least["prefill"], ground.most["prefill"]) == (2, 5)
    assert ground.ttft_s == 0.5
    assert ground.can_flip


def decision(number: int, outcome: str = "") -> Decision:
    counts: dict[Role, int] = {"prefill": 1, "decode": 1}
    return Decision(
        number,
        0.0,
        "tandem",
        common_pb2.REASON_DEMAND_GREW,
        counts,
        {**counts, "prefill": 2},
        outcome=outcome,
    )


def test_the_journal_tells_each_decision_as_it_ended(tmp_path: Path) -> None:
    assert read_decisions(tmp_path) == []
    journal = Journal(tmp_path)
    for one in (decision(1), decision(1, "done"), decision(2)):
        journal.write(one)
    found = read_decisions(tmp_path)
    assert [one["decision_id"] for one in found] == ["scale-1", "scale-2"]
    assert [one["outcome"] for one in found] == ["done", None]


class FakeRouters:
    """One router with three decode workers, of which the last is idle."""

    decoders: tuple[str, ...] = ("decode-a", "decode-b", "decode-c")

    def __init__(self) -> None:
        self.flipped: list[tuple[str, Role]] = []
        self.asked_to_flip = threading.Event()
        self.away = False

    def ask(self) -> dict[str, admin_pb2.GetStatusResponse]:
        if self.away:
            raise UserError("nobody answers", "")
        workers = [worker("prefill-a", "prefill")]
        for name, running in zip(self.decoders, (3, 1, 0), strict=True):
            workers.append(worker(name, "decode"))
            workers[-1].running_requests = running
        return {"a": status(5, *workers)}

    def flip(self, worker_id: str, role: Role) -> admin_pb2.FlipResponse:
        self.flipped.append((worker_id, role))
        self.asked_to_flip.set()
        return admin_pb2.FlipResponse(role=role)


class FakeScaler:
    def __init__(self) -> None:
        self.asked: list[dict[Role, int]] = []
        self.pools: dict[Role, int] = {"prefill": 1, "decode": 3}

    def counts(self) -> Mapping[Role, int]:
        return self.pools

    async def scale_pools(self, wanted: Mapping[Role, int]) -> str:
        self.asked.append(dict(wanted))
        return "it was asked for"


def looped(
    tmp_path: Path,
    mode: str,
    after: dict[Role, int],
    flips: dict[Role, int],
    guests: int = 0,
) -> tuple[FakeRouters, FakeScaler, list[dict[str, object]]]:
    """Two steps of a loop whose policy always wants the same; the last `guests` of the decode
    workers are of the prefill pool."""
    pool = {"engine": "simulated", "workers": {"min": 1, "max": 4}}
    ground = ground_of_spec(load_spec(None, {"prefill": pool, "decode": pool}))
    routers, scaler = FakeRouters(), FakeScaler()
    routers.decoders = ("decode-a", "decode-b", "decode-c")[: 3 - guests] + tuple(
        f"prefill-{name}" for name in "xyz"[:guests]
    )
    scaler.pools = {"prefill": 1 + guests, "decode": 3 - guests}

    def policy(observed: Observation, wanted: Mapping[Role, int]) -> Change:
        assert observed.expected("decode") == wanted["decode"] == 3
        return Change(after, flips, decision(1))

    async def steps() -> None:
        loop = AutoscalerLoop(
            policy,
            ground,
            scaler,
            routers,
            Journal(tmp_path),
            "active" if mode == "active" else "advisory",
        )
        await loop.step(0.0)
        if (flips or guests) and mode == "active":
            assert await asyncio.to_thread(routers.asked_to_flip.wait, 10.0)
        routers.away = True
        assert await loop.step(5.0) is None

    asyncio.run(steps())
    return routers, scaler, read_decisions(tmp_path)


def test_pools_are_resized_and_the_decision_is_acknowledged(tmp_path: Path) -> None:
    routers, scaler, told = looped(tmp_path, "active", {"prefill": 2, "decode": 2}, {})
    assert scaler.asked == [{"prefill": 2, "decode": 2}]
    assert routers.flipped == []
    assert told[0]["outcome"] == "it was asked for"


def test_the_emptiest_worker_flips_and_its_pool_keeps_its_size(tmp_path: Path) -> None:
    after: dict[Role, int] = {"prefill": 2, "decode": 2}
    routers, scaler, _ = looped(tmp_path, "active", after, {"prefill": 1})
    assert routers.flipped == [("decode-c", "prefill")]
    assert scaler.asked == []


def test_where_a_pool_has_none_to_give_up_a_worker_of_the_other_goes_home(tmp_path: Path) -> None:
    after: dict[Role, int] = {"prefill": 1, "decode": 1}
    routers, scaler, told = looped(tmp_path, "active", after, {}, guests=1)
    assert scaler.asked == [{"decode": 1}]
    assert routers.flipped == [("prefill-x", "prefill")]
    assert "prefill-x" in str(told[0]["outcome"])


def test_workers_of_the_own_pool_go_first(tmp_path: Path) -> None:
    after: dict[Role, int] = {"prefill": 1, "decode": 2}
    routers, scaler, _ = looped(tmp_path, "advisory", after, {}, guests=1)
    assert (routers.flipped, scaler.asked) == ([], [])
    routers, scaler, _ = looped(tmp_path, "active", after, {})
    assert scaler.asked == [{"decode": 2}]
    assert routers.flipped == []


def test_more_than_the_spec_allows_is_not_asked_for(tmp_path: Path) -> None:
    _, scaler, _ = looped(tmp_path, "active", {"prefill": 9, "decode": 3}, {})
    assert scaler.asked == [{"prefill": 4}]


def test_advice_changes_nothing(tmp_path: Path) -> None:
    after: dict[Role, int] = {"prefill": 4, "decode": 2}
    routers, scaler, told = looped(tmp_path, "advisory", after, {"prefill": 1})
    assert (routers.flipped, scaler.asked) == ([], [])
    assert told[0]["outcome"] == "advisory: nothing was changed"
