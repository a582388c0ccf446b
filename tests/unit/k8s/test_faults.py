"""The API server refuses, conflicts, forgets and goes away, and operators die: the end is the same.

Every fault is injected at a place that is counted, not timed, so each run is the same.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import pytest

from k8s.operator.kinds import OWNED
from k8s.operator.objects import text
from tests.unit.k8s.api_server import Answer, Call, Object, OperatorKilledError, refuse
from tests.unit.k8s.world import World

_UPGRADE = {"image": "registry.example/tandem:2"}


def _specs(world: World) -> dict[str, object]:
    """All that the operator made, without what differs from run to run."""
    return {
        f"{kind.kind} {text(item, 'metadata', 'name')}": copy.deepcopy(
            item.get("spec") or item.get("data")
        )
        for kind in OWNED
        for item in world.server.all(kind.plural)
    }


def _live_through(world: World, act: Callable[[], None] = lambda: None) -> dict[str, object]:
    """Create, upgrade under traffic; whatever `act` did, everything ends well."""
    world.make_service()
    world.start_operator()
    act()
    assert _settles(world, lambda: world.settled)
    world.traffic = True
    world.run(15)
    world.change(kubernetes=_UPGRADE)
    act()
    assert _settles(world, lambda: world.settled)
    world.run(30)
    assert world.lost == []
    made = _specs(world)
    world.server.remove("tandemservices", "demo")
    act()
    assert _settles(world, lambda: world.service is None)
    assert _specs(world) == {}
    assert world.lost == []
    return made


def _settles(world: World, until: Callable[[], bool]) -> bool:
    """Whether it comes to that, with a new operator for each one that dies on the way."""
    for _ in range(20):
        if world.run(600, until):
            return True
        if not world.operator_runs:
            world.start_operator()
    return False


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, object]:
    world = World()
    made = _live_through(world)
    world.close()
    return made


@pytest.mark.parametrize("status", [409, 410, 429, 500, 503, 0])
def test_refused_calls_are_repeated_to_the_same_end(
    world: World, undisturbed: dict[str, object], status: int
) -> None:
    count = itertools.count()

    def fault(call: Call) -> Answer | None:
        # Every third call, reads and writes alike, of the first 90.
        number = next(count)
        return refuse(status) if number % 3 == 2 and number < 90 else None

    world.server.fault = fault
    assert _live_through(world) == undisturbed


@pytest.mark.parametrize("at_write", range(0, 40, 5))
def test_an_operator_killed_at_any_write_is_followed_by_one_that_goes_on(
    world: World, undisturbed: dict[str, object], at_write: int
) -> None:
    writes = itertools.count()

    def fault(call: Call) -> Answer | None:
        if call.writes and next(writes) == at_write:
            raise OperatorKilledError
        return None

    world.server.fault = fault
    assert _live_through(world) == undisturbed


def test_an_operator_killed_again_and_again_still_gets_there(
    world: World, undisturbed: dict[str, object]
) -> None:
    writes = itertools.count()

    def fault(call: Call) -> Answer | None:
        if call.writes and next(writes) in {2, 5, 9, 14, 16, 21, 24, 26}:
            raise OperatorKilledError
        return None

    world.server.fault = fault
    assert _live_through(world) == undisturbed


def test_lost_watches_only_delay(world: World, undisturbed: dict[str, object]) -> None:
    world.make_service()
    world.start_operator()
    world.run(1)
    world.watches = False
    assert world.run(600, lambda: world.phase == "Ready")
    world.change(kubernetes=_UPGRADE)
    assert world.run(900, lambda: world.settled)
    assert _specs(world) == undisturbed


def test_a_server_that_asks_for_patience_gets_it(world: World) -> None:
    times: list[float] = []

    def fault(call: Call) -> Answer | None:
        times.append(world.loop.now_s)
        return refuse(429, retry_after_s=45) if len(times) == 1 else None

    world.server.fault = fault
    world.make_service()
    world.start_operator()
    world.run(60, lambda: len(times) > 1)
    assert times[1] - times[0] >= 45


def test_repeated_failures_wait_longer_and_longer_up_to_a_minute(world: World) -> None:
    times: list[float] = []

    def fault(call: Call) -> Answer | None:
        times.append(world.loop.now_s)
        return refuse(500)

    world.server.fault = fault
    world.make_service()
    world.start_operator()
    world.run(300)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert gaps[:6] == pytest.approx([1, 2, 4, 8, 16, 32])
    assert gaps[6:] == pytest.approx([60] * len(gaps[6:]))


def test_two_operators_write_nothing_against_each_other(world: World) -> None:
    """Nothing is lost even if the lease fails to keep the second one out."""
    world.make_service()
    world.start_operator()
    first, first_tasks = world._queue, world._tasks
    world.start_operator()
    assert world.run(200, lambda: world.phase == "Ready")
    world.run(120)  # until both have seen what the routers do: nothing
    before = world.writes
    world.run(300)
    assert world.writes == before
    world._tasks += first_tasks
    assert first is not world._queue


def test_a_spec_changed_between_reading_and_writing_is_not_overwritten(world: World) -> None:
    """The finalizers are replaced whole, so they are guarded by the version that was read."""
    world.make_service()
    changed = False

    def fault(call: Call) -> Answer | None:
        nonlocal changed
        if call.method == "PATCH" and call.path.endswith("/demo") and not changed:
            changed = True

            def add(item: Object) -> None:
                item["metadata"]["finalizers"] = ["theirs.example/keep"]  # type: ignore[index]

            world.server.edit("tandemservices", "demo", add)
        return None

    world.server.fault = fault
    world.start_operator()
    assert world.run(100, lambda: world.phase == "Ready")
    finalizers = world.service["metadata"]["finalizers"]  # type: ignore[index]
    assert finalizers == ["theirs.example/keep", "tandem.dev/drain"]
