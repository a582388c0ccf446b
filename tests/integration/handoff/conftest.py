"""Two real processes joined by real NIXL: decode here, prefill in a child."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

import pytest

from protos.tandem.v1.handoff_pb2 import HandoffTicket
from tests.integration.handoff.prefill_process import MODEL, Command, Job, Outcome, fill, run
from tests.unit.state.shapes import SMALL
from workers.handoff.agent import NixlAgent
from workers.handoff.receiver import Arrival, HandoffReceiver, Refusal
from workers.state.memory import StateMemory
from workers.state.store import StateStore

GEOMETRY = SMALL
PREFILL_BLOCKS = 64
PREFILL_SLOTS = 16
LIMIT_S = 30.0


@dataclass(slots=True)
class PrefillWorker:
    """The child, seen from here."""

    connection: Connection
    expected: StateStore  # what its memory holds before a hand-off

    def ask(self, command: Command) -> None:
        """Send a command; the answer comes through `connection`."""
        self.connection.send(command)


@dataclass(slots=True)
class DecodeWorker:
    """The decode side of this process, with exact accounts of its memory."""

    store: StateStore
    memory: StateMemory
    agent: NixlAgent
    receiver: HandoffReceiver
    outcomes: list[Arrival | Refusal] = field(default_factory=list)

    def reserve(self, handle: int, tokens: int) -> tuple[HandoffTicket, tuple[int, ...], int]:
        """Take memory for a prompt and offer it."""
        held = self.memory.allocate(handle, tokens, leased=True)
        now_s = time.monotonic()
        ticket = self.receiver.reserve(handle, held.blocks, held.slot, tokens, now_s)
        return ticket, held.blocks, held.slot

    def wait(self, prefill: PrefillWorker) -> list[Outcome]:
        """Drive the network until the child has answered; returns the answer."""
        deadline_s = time.monotonic() + LIMIT_S
        while not prefill.connection.poll():
            self.outcomes += self.receiver.poll(time.monotonic())
            assert time.monotonic() < deadline_s, "the prefill process does not answer"
        outcomes: list[Outcome] = prefill.connection.recv()
        return outcomes

    def collect(self, count: int) -> list[Arrival | Refusal]:
        """Drive the network until `count` reservations have ended."""
        deadline_s = time.monotonic() + LIMIT_S
        while len(self.outcomes) < count:
            self.outcomes += self.receiver.poll(time.monotonic())
            assert time.monotonic() < deadline_s, f"only {self.outcomes} within {LIMIT_S} s"
        return self.outcomes


def make_job(handle: int, ticket: HandoffTicket, blocks: Sequence[int], tokens: int) -> Job:
    """A job over `blocks` of the prefill process, with a slot and a token that tell jobs apart."""
    return Job(
        handle=handle,
        ticket=ticket.SerializeToString(),
        blocks=tuple(blocks),
        slot=handle % PREFILL_SLOTS,
        tokens=tokens,
        first_token_id=1000 + handle,
    )


@pytest.fixture(scope="module")
def prefill() -> Iterator[PrefillWorker]:
    """A prefill process with random state, shared by the tests of a module."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    seed = 11
    process = context.Process(
        target=run, args=(there, GEOMETRY, PREFILL_BLOCKS, PREFILL_SLOTS, seed)
    )
    process.start()
    there.close()
    expected = StateStore(GEOMETRY, blocks=PREFILL_BLOCKS, slots=PREFILL_SLOTS)
    fill(expected, seed)
    assert here.poll(LIMIT_S), "the prefill process did not start"
    assert here.recv() == "ready"
    yield PrefillWorker(here, expected)
    here.send(None)
    process.join(LIMIT_S)
    assert process.exitcode == 0
    here.close()


@pytest.fixture
def decode() -> Iterator[DecodeWorker]:
    """A decode side with other capacities than the prefill process, and its own junk in memory."""
    store = StateStore(GEOMETRY, blocks=48, slots=12)
    fill(store, 77)
    agent = NixlAgent("decode-test")
    agent.register(store.memory())
    receiver = HandoffReceiver(
        agent, store, MODEL, worker_id="decode-test", lease_s=LIMIT_S, rng=random.Random(5)
    )
    memory = StateMemory(blocks=48, max_requests=12, block_tokens=GEOMETRY.block_tokens)
    yield DecodeWorker(store, memory, agent, receiver)
    receiver.close()
    agent.close()
    memory.audit()
