"""What routers did, run again from their event logs."""

from __future__ import annotations

from collections.abc import Sequence

from protos.tandem.v1.common_pb2 import REASON_MIGRATED
from router.core.event_log import replay
from router.core.events import Ended
from router.core.instructions import SendPrefill, SendReserve
from tests.chaos.rig import Router


async def replayed(routers: Sequence[Router]) -> int:
    """Stop routers and replay their logs; says how many attempts went on with an answer.

    Every event must lead to the instructions that it led to at first, and leave the core as it
    must be.
    """
    continued = 0
    for router in routers:
        await router.stop()
        others = events = 0
        with router.log.open() as lines:
            for step in replay(lines, validate=True):
                events += 1
                others += not step.same
                continued += sum(
                    isinstance(one, SendReserve | SendPrefill) and len(one.generated) > 0
                    for one in step.instructions
                )
        assert events > 100
        assert not others, f"{others} of {events} events came out otherwise"
    return continued


def moved(routers: Sequence[Router]) -> int:
    """How often a request left a worker that was drained, by the logs of routers that stopped."""
    count = 0
    for router in routers:
        with router.log.open() as lines:
            count += sum(
                isinstance(step.event, Ended) and step.event.reason == REASON_MIGRATED
                for step in replay(lines)
            )
    return count
