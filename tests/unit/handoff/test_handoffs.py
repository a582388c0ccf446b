"""Rank 0's view as a whole: what a long step of the engine does to leases."""

from __future__ import annotations

import random
from collections.abc import Sequence

from protos.tandem.v1.handoff_pb2 import RankTarget, StateTensor
from tests.unit.state.shapes import SMALL
from workers.handoff.handoffs import Handoffs
from workers.handoff.manifest import ModelVersion
from workers.handoff.messages import Command, Event
from workers.handoff.receiver import Refusal
from workers.state.layout import StateLayout

_LAYOUT = StateLayout(SMALL)
_LEASE_S = 30.0


class _SilentRanks:
    """Ranks that take every command and say nothing."""

    def __init__(self) -> None:
        tensors = [
            StateTensor(kind=kind, address=1 << 30, part_bytes=_LAYOUT.part_bytes(kind), parts=9)
            for kind in _LAYOUT.kinds
        ]
        target = RankTarget(agent_name="d", agent_metadata=b"d", memory_type="DRAM")
        target.tensors.extend(tensors)
        self.targets: Sequence[RankTarget] = [target]

    def post(self, command: Command) -> None:
        pass

    def poll(self) -> list[Event]:
        return []

    def close(self) -> None:
        pass


def _handoffs() -> Handoffs:
    return Handoffs(
        _SilentRanks(),
        _LAYOUT,
        ModelVersion("m", 0),
        worker_id="decode",
        timeout_s=30.0,
        lease_s=_LEASE_S,
        rng=random.Random(1),
    )


def test_a_lease_that_ended_in_a_long_step_lasts_until_the_router_could_renew_it() -> None:
    handoffs = _handoffs()
    handoffs.poll(0.0)
    handoffs.receiver.reserve(1, (3, 1, 2), 0, 10, 0.0)
    # The engine was busy for longer than the lease; the router hears of it only then.
    assert handoffs.poll(50.0) == []
    handoffs.renew(1, 59.0)
    assert handoffs.poll(59.5) == []
    assert handoffs.poll(88.0) == []


def test_a_lease_that_nobody_renews_ends_in_time_when_steps_are_short() -> None:
    handoffs = _handoffs()
    handoffs.poll(0.0)
    handoffs.receiver.reserve(1, (3, 1, 2), 0, 10, 0.0)
    for now_s in range(1, 30):
        assert handoffs.poll(float(now_s)) == []
    (refusal,) = handoffs.poll(_LEASE_S)
    assert isinstance(refusal, Refusal)
