"""The shell around the policy: it acts on pools and roles, keeps a journal, or only advises."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.autoscaler.decisions import Cause, Decision
from orchestrator.autoscaler.journal import Journal, read_decisions
from orchestrator.autoscaler.live import LiveObserver, ground_of_spec
from orchestrator.autoscaler.starting import autoscaler_of
from orchestrator.spec import load_spec
from protos.tandem.v1 import admin_pb2
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
    first = observer.observe(10.0, [status(5, *here), status(7, *here)], deployed)
    assert first.traffic.arrived == 0
    second = observer.observe(15.0, [status(8, *here), status(9, *here)], deployed)
    assert second.traffic.arrived == 5
    assert second.traffic.prompt_bins == {20: 5}
    assert second.period_s == 5.0
    assert second.queued_requests == 2
    assert dict(second.serving) == {"prefill": 1, "decode": 1}
    assert dict(second.coming) == {"prefill": 0, "decode": 1}


def test_a_worker_that_flips_counts_in_the_role_that_it_will_have() -> None:
    seen = LiveObserver().observe(
        0.0,
        [status(0, worker("decode-a", "decode", "flipping"), worker("decode-b", "decode"))],
        {"prefill": 0, "decode": 2},
    )
    assert (seen.expected("prefill"), seen.expected("decode")) == (1, 1)
    flipped = LiveObserver().observe(
        0.0, [status(0, worker("decode-a", "prefill"))], {"prefill": 0, "decode": 1}
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
        Cause.DEMAND_GREW,
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
