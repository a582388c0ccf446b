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
from workers.handoff.messages import Command, Event, Tell
from workers.handoff.rank_end import RankEnd

logger = logging.getLogger(__name__)

# How often a thread looks at the network: short against a hand-off, long against a poll.
_BUSY_POLL_S = 0.0005
# Where nothing is open, only a peer that asks whether we are done is waiting; but after a command
# an answer may be on its way, such as the grant that a claim asks for.
_IDLE_POLL_S = 0.02
_AWAITS_ANSWER_S = 0.25
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


class Followers(Protocol):
    """Ranks in other processes that do what rank 0 says, in the order in which it says it.

    What they compute is told on the same way, so that a command about state comes after it.
    """

    @property
    def targets(self) -> Sequence[RankTarget]:
        """Their memory, from rank 1 on."""

    def tell(self, command: Command, /) -> None:
        """Give a command to each. Raises RanksLost when one does not take it."""

    def take_events(self) -> list[Event]:
        """What they said since the last call. Never blocks."""


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


class RankDriver:
    """Drives one rank's end in a thread of its own, which alone touches it and its agent.

    NIXL moves bytes between two processes of one machine in the call that posts them, with the
    GIL released, and hashing releases it too: this thread is what makes a hand-off pass while
    the engine's thread computes.
    """

    def __init__(
        self,
        end: RankEnd,
        clock_s: Callable[[], float],
        deliver: Callable[[Event], object],
        failed: Callable[[BaseException], object],
    ) -> None:
        """Events go to `deliver`, and what ends the thread to `failed`; the thread calls both."""
        self._end = end
        self._clock_s = clock_s
        self._deliver = deliver
        self._failed = failed
        # None asks the thread to end.
        self._commands: queue.SimpleQueue[tuple[Command, float] | None] = queue.SimpleQueue()
        self._lively_until_s = 0.0
        self._thread = threading.Thread(target=self._run, name="hand-off", daemon=True)
        self._thread.start()

    def post(self, command: Command) -> None:
        """Have a command carried out, after those before it. Never blocks."""
        self._commands.put((command, self._clock_s()))

    def close(self) -> None:
        """Give everything up and close the agent."""
        self._commands.put(None)
        self._thread.join(_STOP_TIMEOUT_S)
        self._end.close()

    def _run(self) -> None:
        try:
            while self._take_commands():
                self._emit(self._end.poll())
        except BaseException as error:
            logger.exception("the hand-off thread failed")
            self._failed(error)

    def _take_commands(self) -> bool:
        """Apply all waiting commands, waiting a little for one; False asks to end."""
        lively = self._end.busy or self._clock_s() < self._lively_until_s
        wait_s = _BUSY_POLL_S if lively else _IDLE_POLL_S
        while True:
            try:
                item = self._commands.get(wait_s > 0.0, wait_s)
            except queue.Empty:
                return True
            if item is None:
                return False
            self._emit(self._end.handle(*item))
            self._lively_until_s = self._clock_s() + _AWAITS_ANSWER_S
            wait_s = 0.0

    def _emit(self, events: list[Event]) -> None:
        for event in events:
            self._deliver(event)


class RankThread:
    """The only rank of a group, with a thread of its own beside the engine's."""

    def __init__(self, end: RankEnd, clock_s: Callable[[], float]) -> None:
        self.targets: Sequence[RankTarget] = [end.target]
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._failure: BaseException | None = None
        self._driver = RankDriver(end, clock_s, self._events.put, self._fail)

    def post(self, command: Command) -> None:
        self._driver.post(command)

    def poll(self) -> list[Event]:
        """As the protocol; raises what ended the thread, if something did."""
        if self._failure is not None:
            raise RuntimeError("the hand-off thread failed") from self._failure
        events: list[Event] = []
        while not self._events.empty():
            events.append(self._events.get_nowait())
        return events

    def close(self) -> None:
        self._driver.close()

    def _fail(self, error: BaseException) -> None:
        self._failure = error


class GroupRanks:
    """Rank 0 with a thread beside the engine's, and ranks that follow it in other processes."""

    def __init__(self, own: RankThread, followers: Followers) -> None:
        self.targets: Sequence[RankTarget] = [*own.targets, *followers.targets]
        self._own = own
        self._followers = followers

    def post(self, command: Command) -> None:
        """As the protocol; raises RanksLost when a rank takes no commands any more."""
        # Rank 0 alone speaks to other workers.
        if not isinstance(command, Tell):
            self._followers.tell(command)
        self._own.post(command)

    def poll(self) -> list[Event]:
        return [*self._own.poll(), *self._followers.take_events()]

    def close(self) -> None:
        """The followers close theirs when they end."""
        self._own.close()
