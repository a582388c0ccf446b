"""Hand-offs over a network in which many senders share receivers and many receivers senders.

Every worker has one way out and one way in. A transfer gets an equal share of both and runs at the
smaller one: fair sharing at either end (what a bottleneck elsewhere leaves over is not given to
others, so a congested cluster comes out slightly slower than under max-min fairness). The core of
the network is not modelled: fabrics for this purpose have full bisection bandwidth.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from orchestrator.simulator.agenda import Agenda


class Port:
    """One direction of one worker's network."""

    __slots__ = ("bytes_per_s", "flows")

    def __init__(self, bytes_per_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self.flows: dict[Flow, None] = {}  # those that have something to send

    def let_go(self, now_s: float) -> None:
        """Forget a flow that had this port to itself and has sent everything."""
        for flow in self.flows:
            if flow.sent_s <= now_s:
                flow.leave_unseen()
            return


class Flow:
    """The state of one request on its way.

    More can be added while a prompt is still being read; `seal` says that this was all.
    """

    __slots__ = (
        "_agenda",
        "_as_of_s",
        "_done",
        "_latency_s",
        "_left",
        "_rate",
        "_sealed",
        "_sending",
        "_since_s",
        "_version",
        "busy_s",
        "sent_s",
        "sink",
        "source",
        "total_bytes",
    )

    def __init__(
        self,
        agenda: Agenda,
        source: Port,
        sink: Port,
        done: Callable[[Flow], None],
        latency_s: float = 0.0,
    ) -> None:
        """`done` is called `latency_s` after the last byte has been sent after `seal`."""
        self._agenda = agenda
        self._done = done
        self._latency_s = latency_s
        self._left = 0.0
        self._rate = 0.0
        self._as_of_s = self._since_s = 0.0
        self._sealed = self._sending = False
        self._version = 0
        self.sent_s = math.inf  # when all is sent, of a flow that is alone at both ends
        self.source = source
        self.sink = sink
        self.total_bytes = 0.0
        self.busy_s = 0.0  # while there was something to send

    def add(self, amount_bytes: float, *, is_last: bool = False) -> None:
        """So much more can be sent from now on; the last amount seals."""
        self.total_bytes += amount_bytes
        now_s = self._agenda.now_s
        self._sealed = is_last
        if self._sending:
            self._settle(now_s)
            self._left += amount_bytes
            self._plan()
            return
        self._left = amount_bytes
        self._as_of_s = self._since_s = now_s
        self._rate = 0.0
        source, sink = self.source, self.sink
        source.let_go(now_s)
        sink.let_go(now_s)
        self._sending = True
        source.flows[self] = sink.flows[self] = None
        if len(source.flows) > 1 or len(sink.flows) > 1:
            self._reshare()
            return
        self._rate = self._share()
        if is_last:
            # Nobody else is there to be given its share when it is through.
            self.sent_s = now_s + amount_bytes / self._rate
            self._version += 1
            self._agenda.at(self.sent_s + self._latency_s, self._arrived, self._version)
        else:
            self._plan()

    def leave_unseen(self) -> None:
        """All is sent, but has not arrived; nobody shared the way."""
        self._sending = False
        del self.source.flows[self], self.sink.flows[self]
        self.busy_s += self.sent_s - self._since_s

    def seal(self) -> None:
        """Nothing more will be added."""
        self._sealed = True
        if not self._sending:
            self._finish()

    def stop(self) -> None:
        """Send no more; nothing is told to anyone."""
        self._version += 1
        self._sealed = False
        if self._sending:
            self._leave()

    def _leave(self) -> None:
        self._sending = False
        sending, receiving = self.source.flows, self.sink.flows
        del sending[self], receiving[self]
        self.busy_s += self._agenda.now_s - self._since_s
        if sending or receiving:
            self._reshare()

    def _reshare(self) -> None:
        """Whoever has another share than before goes on with that."""
        source, now_s = self.source, self._agenda.now_s
        for flow in source.flows:
            flow._adapt(now_s)
        for flow in self.sink.flows:
            if flow.source is not source:
                flow._adapt(now_s)

    def _share(self) -> float:
        """Bytes a second of an equal share at either end, the smaller one."""
        source, sink = self.source, self.sink
        out = source.bytes_per_s / len(source.flows)
        into = sink.bytes_per_s / len(sink.flows)
        return into if into < out else out

    def _adapt(self, now_s: float) -> None:
        rate = self._share()
        if rate != self._rate or self.sent_s < math.inf:
            self.sent_s = math.inf
            self._settle(now_s)
            self._rate = rate
            self._plan()

    def _settle(self, now_s: float) -> None:
        self._left = max(0.0, self._left - self._rate * (now_s - self._as_of_s))
        self._as_of_s = now_s

    def _plan(self) -> None:
        self._version += 1
        self._agenda.at(self._as_of_s + self._left / self._rate, self._sent, self._version)

    def _sent(self, version: int) -> None:
        if version != self._version:
            return
        self._leave()
        if self._sealed:
            self._finish()

    def _finish(self) -> None:
        if self._latency_s > 0.0:
            agenda = self._agenda
            agenda.at(agenda.now_s + self._latency_s, self._arrived, self._version)
        else:
            self._done(self)

    def _arrived(self, version: int) -> None:
        if version != self._version:
            return
        if self._sending:
            self.leave_unseen()
        self._done(self)
