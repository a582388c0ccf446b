"""Hand-offs over a network in which many senders share receivers and many receivers senders.

Every worker has one way out and one way in. A transfer gets an equal share of both and runs at the
smaller one: fair sharing at either end (what a bottleneck elsewhere leaves over is not given to
others, so a congested cluster comes out slightly slower than under max-min fairness). The core of
the network is not modelled: fabrics for this purpose have full bisection bandwidth.
"""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.simulator.agenda import Agenda


class Port:
    """One direction of one worker's network."""

    __slots__ = ("bytes_per_s", "flows")

    def __init__(self, bytes_per_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self.flows: dict[Flow, None] = {}  # those that have something to send now


class Flow:
    """The state of one request on its way.

    More can be added while a prompt is still being read; `seal` says that this was all.
    """

    __slots__ = (
        "_agenda",
        "_as_of_s",
        "_done",
        "_left",
        "_rate",
        "_sealed",
        "_since_s",
        "_version",
        "busy_s",
        "sink",
        "source",
        "total_bytes",
    )

    def __init__(
        self, agenda: Agenda, source: Port, sink: Port, done: Callable[[Flow], None]
    ) -> None:
        """`done` is called when everything has arrived after `seal`."""
        self._agenda = agenda
        self._done = done
        self._left = 0.0
        self._rate = 0.0
        self._as_of_s = self._since_s = agenda.now_s
        self._sealed = False
        self._version = 0
        self.source = source
        self.sink = sink
        self.total_bytes = 0.0
        self.busy_s = 0.0  # while there was something to send

    def add(self, amount_bytes: float) -> None:
        """So much more can be sent from now on."""
        self.total_bytes += amount_bytes
        if self in self.source.flows:
            self._settle()
            self._left += amount_bytes
            self._plan()
            return
        self._left = amount_bytes
        self._as_of_s = self._since_s = self._agenda.now_s
        self.source.flows[self] = self.sink.flows[self] = None
        self._reshare()

    def seal(self) -> None:
        """Nothing more will be added."""
        self._sealed = True
        if self not in self.source.flows:
            self._done(self)

    def stop(self) -> None:
        """Send no more; nothing is told to anyone."""
        self._version += 1
        self._sealed = False
        self._leave()

    def _leave(self) -> None:
        if self in self.source.flows:
            del self.source.flows[self], self.sink.flows[self]
            self.busy_s += self._agenda.now_s - self._since_s
            self._reshare()

    def _reshare(self) -> None:
        """Everyone at either end gets another share."""
        for flow in self.source.flows:
            flow._settle()
            flow._plan()
        for flow in self.sink.flows:
            if flow.source is not self.source:
                flow._settle()
                flow._plan()

    def _settle(self) -> None:
        now_s = self._agenda.now_s
        self._left = max(0.0, self._left - self._rate * (now_s - self._as_of_s))
        self._as_of_s = now_s

    def _plan(self) -> None:
        source, sink = self.source, self.sink
        rate = min(
            source.bytes_per_s / len(source.flows),
            sink.bytes_per_s / len(sink.flows),
        )
        self._rate = rate
        self._version += 1
        self._agenda.at(self._as_of_s + self._left / rate, self._sent, self._version)

    def _sent(self, version: int) -> None:
        if version != self._version:
            return
        self._leave()
        if self._sealed:
            self._done(self)
