"""When one end of a hand-off dies or hangs, the other end hears of it and goes on."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess

import pytest

from protos.tandem.v1.common_pb2 import ReasonCode
from protos.tandem.v1.handoff_pb2 import HandoffTicket
from tests.integration.handoff import decode_process
from tests.integration.handoff.conftest import GEOMETRY, LIMIT_S
from tests.integration.handoff.prefill_process import MODEL
from workers.handoff.agent import NixlAgent
from workers.handoff.receiver import HandoffReceiver, Refusal
from workers.handoff.sender import HandoffSender, SendFailed, Sent
from workers.state.store import StateStore

TOKENS = 16
TIMEOUT_S = 1000.0


@dataclass(slots=True)
class Peer:
    """A decode process and the tickets that it gave out."""

    process: BaseProcess
    tickets: list[HandoffTicket]

    def kill(self) -> None:
        """End it as the kernel would."""
        self.process.kill()
        self.process.join(LIMIT_S)

    def stop(self) -> None:
        """Keep it alive but hanging."""
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGSTOP)


@pytest.fixture
def peer() -> Iterator[Peer]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=decode_process.run, args=(there, GEOMETRY, 4, TOKENS))
    process.start()
    there.close()
    assert here.poll(LIMIT_S), "the decode process did not start"
    yield Peer(process, [HandoffTicket.FromString(ticket) for ticket in here.recv()])
    process.kill()
    process.join(LIMIT_S)
    here.close()


@dataclass(slots=True)
class Prefill:
    """The prefill side of this process. Its clock is set by the tests."""

    agent: NixlAgent
    store: StateStore
    sender: HandoffSender

    def start(self, handle: int, ticket: HandoffTicket) -> None:
        blocks = self.store.geometry.blocks_for(TOKENS)
        self.sender.start(handle, ticket, range(blocks), 0, TOKENS, 1, 0.0)

    def outcome(self, now_s: float = 0.0) -> Sent | SendFailed:
        """Drive the network until one hand-off has ended."""
        limit_s = time.monotonic() + LIMIT_S
        while time.monotonic() < limit_s:
            for ended in self.sender.poll(now_s):
                return ended
        raise AssertionError(f"no hand-off ended within {LIMIT_S} s")


@pytest.fixture
def prefill() -> Iterator[Prefill]:
    store = StateStore(GEOMETRY, blocks=8, slots=1)
    agent = NixlAgent("prefill-test")
    agent.register(store.memory())
    sender = HandoffSender(agent, store, MODEL, timeout_s=TIMEOUT_S)
    yield Prefill(agent, store, sender)
    sender.close()
    agent.close()


def test_a_peer_that_died_before_the_first_write_is_a_failed_transfer(
    prefill: Prefill, peer: Peer
) -> None:
    peer.kill()

    prefill.start(1, peer.tickets[0])

    outcome = prefill.outcome()
    assert isinstance(outcome, SendFailed)
    assert outcome.reason == ReasonCode.REASON_TRANSFER_FAILED
    assert peer.tickets[0].ranks[0].agent_name in outcome.detail


def test_a_peer_that_died_between_writes_fails_each_later_one(prefill: Prefill, peer: Peer) -> None:
    prefill.start(1, peer.tickets[0])
    assert isinstance(prefill.outcome(), Sent)
    peer.kill()

    for handle in (2, 3):
        prefill.start(handle, peer.tickets[handle - 1])
        outcome = prefill.outcome()
        assert isinstance(outcome, SendFailed)
        assert outcome.handle == handle
        assert outcome.reason == ReasonCode.REASON_TRANSFER_FAILED


def test_a_hanging_peer_is_given_up_after_the_timeout(prefill: Prefill, peer: Peer) -> None:
    prefill.start(1, peer.tickets[0])
    assert isinstance(prefill.outcome(), Sent)
    peer.stop()
    prefill.start(2, peer.tickets[1])
    assert prefill.sender.poll(TIMEOUT_S - 1.0) == []

    outcome = prefill.outcome(now_s=TIMEOUT_S)

    assert isinstance(outcome, SendFailed)
    assert outcome.reason == ReasonCode.REASON_TRANSFER_FAILED
    assert f"not done after {TIMEOUT_S} s" in outcome.detail


def test_an_aborted_transfer_ends_as_cancelled(prefill: Prefill, peer: Peer) -> None:
    prefill.start(1, peer.tickets[0])
    assert isinstance(prefill.outcome(), Sent)
    peer.stop()
    prefill.start(2, peer.tickets[1])

    prefill.sender.abort(2)
    prefill.sender.abort(99)  # unknown: nothing happens

    outcome = prefill.outcome()
    assert isinstance(outcome, SendFailed)
    assert (outcome.handle, outcome.reason) == (2, ReasonCode.REASON_CANCELLED)
    assert prefill.sender.poll(0.0) == []


def test_a_live_peer_is_served_after_another_one_died(prefill: Prefill, peer: Peer) -> None:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    doomed = context.Process(target=decode_process.run, args=(there, GEOMETRY, 1, TOKENS))
    doomed.start()
    there.close()
    assert here.poll(LIMIT_S)
    (ticket,) = here.recv()
    doomed.kill()
    doomed.join(LIMIT_S)
    here.close()

    prefill.start(1, HandoffTicket.FromString(ticket))
    assert isinstance(prefill.outcome(), SendFailed)
    prefill.start(2, peer.tickets[0])
    assert isinstance(prefill.outcome(), Sent)


def test_a_reservation_that_nobody_fills_ends_with_its_lease() -> None:
    store = StateStore(GEOMETRY, blocks=8, slots=1)
    agent = NixlAgent("decode-test")
    agent.register(store.memory())
    receiver = HandoffReceiver(
        agent, store, MODEL, worker_id="decode-test", lease_s=10.0, rng=random.Random(1)
    )
    receiver.reserve(4, range(8), 0, TOKENS, now_s=100.0)

    assert receiver.poll(109.9) == []
    (refusal,) = receiver.poll(110.0)
    receiver.reserve(4, range(8), 0, TOKENS, now_s=110.0)  # the handle is free again
    receiver.close()
    agent.close()

    assert isinstance(refusal, Refusal)
    assert (refusal.handle, refusal.reason) == (4, ReasonCode.REASON_LEASE_EXPIRED)
