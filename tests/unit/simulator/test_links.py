"""Transfers share the ways out of senders and into receivers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.simulator.agenda import Agenda
from orchestrator.simulator.links import Flow, Port


class Network:
    """Ports of 100 bytes a second, and when each flow's bytes have arrived."""

    def __init__(self, ports: int = 4) -> None:
        self.agenda = Agenda()
        self.out = [Port(100.0) for _ in range(ports)]
        self.into = [Port(100.0) for _ in range(ports)]
        self.ends: dict[str, float] = {}

    def send(
        self,
        name: str,
        source: int,
        sink: int,
        size: float,
        at_s: float = 0.0,
        latency_s: float = 0.0,
        *,
        at_once: bool = True,
    ) -> None:
        """Not `at_once`: it is said only later that this was all."""

        def begin(_: int) -> None:
            flow = self.open(name, source, sink, latency_s)
            flow.add(size, is_last=at_once)
            if not at_once:
                flow.seal()

        self.agenda.at(at_s, begin)

    def open(self, name: str, source: int, sink: int, latency_s: float = 0.0) -> Flow:
        def done(_: Flow) -> None:
            self.ends[name] = self.agenda.now_s

        return Flow(self.agenda, self.out[source], self.into[sink], done, latency_s)

    def run(self) -> dict[str, float]:
        while self.agenda.advance():
            pass
        return self.ends


def test_a_transfer_alone_has_the_whole_link() -> None:
    net = Network()
    net.send("a", 0, 0, 250.0)
    assert net.run() == {"a": pytest.approx(2.5)}


def test_fan_out_shares_the_sender_and_fan_in_the_receiver() -> None:
    for pairs in ([(0, 0), (0, 1)], [(0, 0), (1, 0)]):
        net = Network()
        for name, (source, sink) in zip("ab", pairs, strict=True):
            net.send(name, source, sink, 100.0)
        assert net.run() == {"a": pytest.approx(2.0), "b": pytest.approx(2.0)}


def test_whoever_is_left_speeds_up_again() -> None:
    net = Network()
    net.send("long", 0, 0, 200.0)
    net.send("short", 0, 1, 50.0, at_s=0.5)
    # 50 of long go alone; then both at half speed until short is through at 1.5 s.
    assert net.run() == {"short": pytest.approx(1.5), "long": pytest.approx(2.5)}


def test_latency_holds_up_what_arrives_and_nobody_else() -> None:
    net = Network()
    net.send("a", 0, 0, 100.0, latency_s=5.0)
    net.send("b", 0, 0, 100.0, at_s=1.5, latency_s=5.0)
    assert net.run() == {"a": pytest.approx(6.0), "b": pytest.approx(7.5)}
    assert not net.out[0].flows
    assert not net.into[0].flows


def test_transfers_that_share_no_end_do_not_meet() -> None:
    net = Network()
    for place in range(4):
        net.send(str(place), place, 3 - place, 100.0)
    assert list(net.run().values()) == pytest.approx([1.0] * 4)


def test_state_that_comes_in_pieces_waits_for_its_last_one() -> None:
    net = Network()
    flow = net.open("a", 0, 0)
    flow.add(100.0)
    net.agenda.at(0.5, lambda _: flow.add(100.0))
    net.agenda.at(3.0, lambda _: flow.add(50.0))
    net.agenda.at(3.0, lambda _: flow.seal())
    assert net.run() == {"a": pytest.approx(3.5)}
    assert flow.total_bytes == 250.0
    assert flow.busy_s == pytest.approx(2.5), "waiting for pieces is not sending"


def test_a_stopped_transfer_never_arrives_and_gives_its_share_back() -> None:
    net = Network()
    net.send("a", 0, 0, 100.0)
    early = net.open("early", 1, 1)
    early.add(100.0, is_last=True)
    early.stop()
    gone = net.open("gone", 0, 0)
    gone.add(1000.0)
    gone.seal()
    net.agenda.at(1.0, lambda _: gone.stop())
    assert net.run() == {"a": pytest.approx(1.5)}


_FLOWS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 3), st.floats(1.0, 500.0), st.floats(0.0, 10.0)),
    min_size=1,
    max_size=12,
)


@given(_FLOWS, st.sampled_from((0.0, 0.7)))
def test_a_transfer_known_as_a_whole_takes_as_long_as_one_that_is_not(
    flows: list[tuple[int, int, float, float]], latency_s: float
) -> None:
    ends = []
    for at_once in (True, False):
        net = Network()
        for number, flow in enumerate(flows):
            net.send(str(number), *flow, latency_s, at_once=at_once)
        ends.append(net.run())
        assert not any(port.flows for port in (*net.out, *net.into))
    assert ends[0] == {name: pytest.approx(at_s) for name, at_s in ends[1].items()}


@given(_FLOWS)
def test_no_port_carries_more_than_it_can(flows: list[tuple[int, int, float, float]]) -> None:
    net = Network()
    for number, (source, sink, size, at_s) in enumerate(flows):
        net.send(str(number), source, sink, size, at_s)
    ends = net.run()
    assert len(ends) == len(flows)
    for number, (_, _, size, at_s) in enumerate(flows):
        assert ends[str(number)] >= at_s + size / 100.0 - 1e-6
    for side in (0, 1):
        for port in range(4):
            mine = [
                (flow[3], ends[str(number)], flow[2])
                for number, flow in enumerate(flows)
                if flow[side] == port
            ]
            if mine:
                first, last = min(at for at, _, _ in mine), max(end for _, end, _ in mine)
                assert sum(size for _, _, size in mine) <= 100.0 * (last - first) + 1e-6
