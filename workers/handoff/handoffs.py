"""All hand-offs of one worker, as its engine sees them: in, out, and what became of each.

Exists to join the two sides, which share the group's ranks and their agents.
"""

from __future__ import annotations

import logging
import random

from protos.tandem.v1.handoff_pb2 import HandoffControl
from workers.handoff.manifest import ModelVersion, from_notification
from workers.handoff.messages import (
    Event,
    Expecting,
    Heard,
    PairArrived,
    PairRefused,
    Pushed,
    Unreachable,
    WriteEnded,
    WriteFailed,
    Written,
)
from workers.handoff.ranks import RankPort
from workers.handoff.receiver import Arrival, HandoffReceiver, Refusal, Released
from workers.handoff.sender import HandoffSender, SendFailed, Sent
from workers.state.layout import StateLayout

logger = logging.getLogger(__name__)

Outcome = Sent | SendFailed | Arrival | Refusal | Released
_ASK_EVERY_S = 1.0


class Handoffs:
    """Rank 0's view. Called by the engine loop only; never blocks on the network."""

    def __init__(
        self,
        ranks: RankPort,
        layout: StateLayout,
        model: ModelVersion,
        *,
        worker_id: str,
        timeout_s: float,
        lease_s: float,
        rng: random.Random,
    ) -> None:
        """A transfer that takes longer than `timeout_s` is given up, a lease lasts `lease_s`."""
        self._ranks = ranks
        self._polled_s = 0.0
        targets = list(ranks.targets)
        self.sender = HandoffSender(
            ranks.post,
            layout,
            model,
            targets[0].agent_metadata,
            timeout_s=timeout_s,
            rng=rng,
        )
        self.receiver = HandoffReceiver(
            ranks.post,
            layout,
            model,
            targets,
            worker_id=worker_id,
            lease_s=lease_s,
            stop_s=timeout_s,
            ask_every_s=_ASK_EVERY_S,
            rng=rng,
        )

    @property
    def busy(self) -> bool:
        """Whether `poll` must be called soon."""
        return self.sender.busy or self.receiver.busy

    def renew(self, handle: int, now_s: float) -> None:
        """A request is still wanted: whichever lease it has begins anew."""
        self.sender.renew(handle, now_s)
        self.receiver.renew(handle, now_s)

    def poll(self, now_s: float) -> list[Outcome]:
        """What ended since the last call, on its way in or out.

        A step of the engine may last longer than a lease, and reservations that it began are only
        told of at its end. So time in which this was not called does not end a lease here. A
        writer's right to write does end: decode counts on it.
        """
        if now_s - self._polled_s > self.receiver.lease_s / 3.0:
            self.receiver.spare(now_s)
        self._polled_s = now_s
        for event in self._ranks.poll():
            self._take(event, now_s)
        return [*self.receiver.take(now_s), *self.sender.take(now_s)]

    def close(self) -> None:
        """Give everything up and close the agents of all ranks."""
        self._ranks.close()

    def _take(self, event: Event, now_s: float) -> None:
        match event:
            case Written() | Pushed() | WriteFailed() | WriteEnded():
                self.sender.rank_said(event)
            case Expecting() | PairArrived() | PairRefused():
                self.receiver.rank_said(event, now_s)
            case Heard(agent_name, payload):
                message = from_notification(payload)
                if not isinstance(message, HandoffControl):
                    return
                if message.WhichOneof("about") in ("claim", "writer_done"):
                    self.receiver.heard(message, agent_name, now_s)
                else:
                    self.sender.heard(message, agent_name)
            case Unreachable(agent_name, detail):
                logger.info("%s cannot be reached: %s", agent_name, detail)
                self.sender.unreachable(agent_name, detail)
                self.receiver.unreachable(agent_name)
