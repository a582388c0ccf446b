"""How rank 0 reaches the ends of all ranks of its group.

Exists because the ends are driven in different ways: in the caller's own time, in a thread beside
the engine, or in other processes behind the group's command channel.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from protos.tandem.v1.handoff_pb2 import RankTarget
from workers.handoff.messages import Command, Event
from workers.handoff.rank_end import RankEnd

logger = logging.getLogger(__name__)

# How often a thread looks at the network: short against a hand-off, long against a poll.
_BUSY_POLL_S = 0.0005
# Where nothing is open, only a peer that asks whether we are done is waiting.
_IDLE_POLL_S = 0.02
_STOP_TIMEOUT_S = 30.0


class RankPort(Protocol):
    """All ranks of one group, seen from rank 0."""

    @property
    def targets(self) -> Sequence[RankTarget]:
        """The memory of every rank, by rank."""

    def post(self, command: Command) -> None:
        """Give a command to every rank. Never blocks."""

    def poll(self) -> list[Event]:
        """What any rank said since the last call. Never blocks."""

    def close(self) -> None:
        """End the hand-offs of every rank and close the agents."""


class SteppedRanks:
    """Ranks that live in this process and work while they are polled."""

    def __init__(self, ends: Sequence[RankEnd], clock_s: Callable[[], float]) -> None:
        self._ends = ends
        self._clock_s = clock_s
        self._events: list[Event] = []
        self.targets = [end.target for end in ends]

    def post(self, command: Command) -> None:
        posted_s = self._clock_s()
        for end in self._ends:
            self._events += end.handle(command, posted_s)

    def poll(self) -> list[Event]:
        events, self._events = self._events, []
        for end in self._ends:
            events += end.poll()
        return events

    def close(self) -> None:
        for end in self._ends:
            end.close()


class RankThread:
    """A rank with a thread of its own, which alone touches the end and its agent.

    NIXL moves bytes between two processes of one machine in the call that posts them, with the
    GIL released, and hashing releases it too: this thread is what makes a hand-off pass while
    the engine's thread computes.
    """

    def __init__(self, end: RankEnd, clock_s: Callable[[], float]) -> None:
        self.targets = [end.target]
        self._end = end
        self._clock_s = clock_s
        # None asks the thread to end.
        self._commands: queue.SimpleQueue[tuple[Command, float] | None] = queue.SimpleQueue()
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="hand-off", daemon=True)
        self._thread.start()

    def post(self, command: Command) -> None:
        self._commands.put((command, self._clock_s()))

    def poll(self) -> list[Event]:
        """As the protocol; raises what ended the thread, if something did."""
        if self._failure is not None:
            raise RuntimeError("the hand-off thread failed") from self._failure
        events: list[Event] = []
        while not self._events.empty():
            events.append(self._events.get_nowait())
        return events

    def close(self) -> None:
        self._commands.put(None)
        self._thread.join(_STOP_TIMEOUT_S)
        self._end.close()

    def _run(self) -> None:
        try:
            while self._take_commands():
                self._emit(self._end.poll())
        except BaseException as error:
            logger.exception("the hand-off thread failed")
            self._failure = error

    def _take_commands(self) -> bool:
        """Apply all waiting commands, waiting a little for one; False asks to end."""
        wait_s = _BUSY_POLL_S if self._end.busy else _IDLE_POLL_S
        while True:
            try:
                item = self._commands.get(wait_s > 0.0, wait_s)
            except queue.Empty:
                return True
            if item is None:
                return False
            self._emit(self._end.handle(*item))
            wait_s = 0.0

    def _emit(self, events: list[Event]) -> None:
        for event in events:
            self._events.put(event)
