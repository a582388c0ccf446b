"""The rules of other systems, as their documents give them."""

from __future__ import annotations

from orchestrator.autoscaler.baselines import PerRole, RayDefault, Threshold
from orchestrator.autoscaler.observation import Observation, WorkerSeen
from orchestrator.autoscaler.oracle import Oracle, Window, whole_workers
from router.core.events import Role
from tests.unit.autoscaler.plant import Plant, ground


def observed(now_s: float, running: int, queued: int = 0, held: int = 0) -> Observation:
    here: tuple[Role, ...] = ("prefill", "decode")
    return Observation(
        now_s,
        queued,
        running,
        {"prefill": 1, "decode": 1},
        {"prefill": 0, "decode": 0},
        workers=tuple(
            WorkerSeen(role, role, 60.0, running=running, held_tokens=held, total_tokens=100)
            for role in here
        ),
    )


def test_ray_serve_wants_a_replica_for_two_ongoing_requests_after_thirty_seconds() -> None:
    rule = RayDefault(ground())
    wanted: dict[Role, int] = {"prefill": 1, "decode": 1}
    for step in range(6):
        assert rule(observed(5.0 * step, 10), wanted).counts == wanted
    assert rule(observed(30.0, 10), wanted).counts == {"prefill": 5, "decode": 5}


def test_ray_serve_shrinks_only_after_ten_minutes() -> None:
    rule = RayDefault(ground())
    wanted: dict[Role, int] = {"prefill": 4, "decode": 4}
    changed = [
        step * 5.0 for step in range(200) if rule(observed(step * 5.0, 2), wanted).counts != wanted
    ]
    assert changed[0] == 600.0


def test_per_role_divides_the_demand_by_the_rate_of_an_engine() -> None:
    one = ground()
    plant = Plant(one, PerRole(one))
    plant.run(60.0, lambda _: 50)
    (decision,) = plant.decisions
    # 10 requests a second, each of which is read for 0.41 s: 4.1 workers, and no room for waiting.
    assert decision.after["prefill"] == 5


def test_the_threshold_adds_one_at_a_time() -> None:
    rule = Threshold(ground())
    wanted: dict[Role, int] = {"prefill": 1, "decode": 1}
    assert rule(observed(25.0, 1, held=90), wanted).counts == wanted
    assert rule(observed(30.0, 1, held=90), wanted).counts == {"prefill": 2, "decode": 2}
    assert rule(observed(60.0, 6, held=10), wanted).counts == {"prefill": 2, "decode": 1}


def test_an_oracle_starts_workers_a_cold_start_before_they_are_needed() -> None:
    windows = [
        Window(10.0 * n, 10.0 * n + 10.0, {"prefill": 3.0 if 10 <= n < 20 else 0.5, "decode": 0.5})
        for n in range(40)
    ]
    oracle = Oracle(ground(cold_start_s=30.0), windows, 0.0)
    assert [oracle.counts(at_s)["prefill"] for at_s in (50.0, 70.0, 195.0, 200.0)] == [1, 3, 3, 1]


def test_headroom_grows_with_the_square_root_of_the_load() -> None:
    assert whole_workers(4.0, 0.0) == 4
    assert whole_workers(4.0, 0.5) == 5
    assert whole_workers(100.0, 0.5) == 105
