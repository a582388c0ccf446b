"""One rank's end of all hand-offs: its agent, what it sends and what it receives.

Exists as the one thing that a rank has to drive. It does what it is told, says what happened, and
decides nothing: rank 0 does. It is not thread-safe; `RankDriver` gives it a thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from protos.tandem.v1.handoff_pb2 import HandoffControl, Manifest, RankTarget
from workers.handoff.agent import NixlAgent, Notification, RemoteMemory
from workers.handoff.errors import TransferFailed
from workers.handoff.manifest import ModelVersion, from_notification
from workers.handoff.messages import (
    Abort,
    Command,
    Event,
    Expect,
    Finish,
    Forget,
    Heard,
    Open,
    Push,
    Tell,
    Unreachable,
)
from workers.handoff.rank_receiver import RankReceiver
from workers.handoff.rank_sender import RankSender
from workers.handoff.ticket import make_target
from workers.state.layout import StateLayout
from workers.state.store import StateStore

logger = logging.getLogger(__name__)


class RankEnd:
    """Owns the agent, with the memory of the store registered."""

    def __init__(
        self,
        agent: NixlAgent,
        store: StateStore,
        layout: StateLayout,
        rank: int,
        model: ModelVersion,
        clock_s: Callable[[], float],
    ) -> None:
        self._agent = agent
        self._rank = rank
        self._clock_s = clock_s
        agent.register(store.memory())
        self.target: RankTarget = make_target(agent, store, layout)
        self._sender = RankSender(agent, store, layout, rank, model, clock_s)
        self._receiver = RankReceiver(store, layout, rank, model)

    @property
    def busy(self) -> bool:
        """Whether the network must be polled often: something is open or may arrive."""
        return self._sender.busy or self._receiver.busy

    def handle(self, command: Command, posted_s: float) -> list[Event]:
        """Apply a command that rank 0 gave at `posted_s`."""
        match command:
            case Open() | Push() | Finish() | Abort():
                return self._sender.handle(command, posted_s)
            case Expect():
                return self._receiver.expect(command)
            case Forget():
                self._receiver.forget(command.reservation)
            case Tell() if self._rank == 0:
                return self._tell(command)
        return []

    def poll(self) -> list[Event]:
        """Drive the network; returns what happened since the last call."""
        events: list[Event] = []
        for notification in self._agent.notifications():
            events += self._heard(notification)
        return events + self._sender.poll()

    def close(self) -> None:
        """Give everything up and close the agent."""
        self._sender.close()
        self._agent.close()

    def _tell(self, command: Tell) -> list[Event]:
        name = command.agent_name
        try:
            if command.agent_metadata:
                self._agent.connect(RemoteMemory(name, command.agent_metadata, "DRAM", 0))
            if command.payload:
                self._agent.notify(name, command.payload)
        except TransferFailed as error:
            self._agent.forget(name)
            return [Unreachable(name, str(error))]
        return []

    def _heard(self, notification: Notification) -> list[Event]:
        match from_notification(notification.payload):
            case Manifest() as manifest:
                return self._receiver.accept(manifest, notification.sender)
            case HandoffControl():
                return [Heard(notification.sender, notification.payload)]
        logger.warning(
            "dropped a notification of %d bytes from %s: it is no manifest",
            len(notification.payload),
            notification.sender,
        )
        return []
