"""Groups whose ranks are processes of their own: rank 0 reaches them with encoded messages only."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import cast

import pytest
import torch

from protos.tandem.v1.handoff_pb2 import RankTarget
from tests.integration.handoff.workers import LEASE_S, LIMIT_S, MODEL, TIMEOUT_S
from tests.unit.state.shapes import SMALL
from workers.handoff.agent import NixlAgent
from workers.handoff.handoffs import Handoffs, Outcome
from workers.handoff.messages import Command, Event, decode, encode
from workers.handoff.rank_end import RankEnd
from workers.handoff.ranks import RankThread
from workers.handoff.receiver import Arrival
from workers.handoff.sender import Sent
from workers.parallel.layout import ParallelLayout
from workers.state.layout import StateLayout
from workers.state.store import StateStore

BLOCKS, TOKENS = 12, 37
SOURCE = StateLayout(SMALL, ParallelLayout.tensor_parallel(2))
TARGET = StateLayout(SMALL, ParallelLayout(kvp=2, tpf=2, interleave=2))


def _rank(connection: Connection, name: str, layout: StateLayout, rank: int, fill: int) -> None:
    """One rank: commands come in as bytes, events go out as bytes."""
    torch.set_num_threads(1)
    store = StateStore(layout.rank_geometry, blocks=BLOCKS, slots=1)
    for tensor in (store.tensors.kv, store.tensors.conv, store.tensors.ssm):
        tensor.fill_(fill)
    agent = NixlAgent(f"{name}.{rank}")
    thread = RankThread(RankEnd(agent, store, layout, rank, MODEL, time.monotonic), time.monotonic)
    connection.send_bytes(thread.targets[0].SerializeToString())
    try:
        while True:
            if connection.poll(0.0005):
                data = connection.recv_bytes()
                if not data:
                    break
                thread.post(cast("Command", decode(data)))
            for event in thread.poll():
                connection.send_bytes(encode(event))
    except EOFError:
        pass
    thread.close()


class PipedRanks:
    """A group of rank processes, seen from rank 0, which needs no memory itself."""

    def __init__(self, name: str, layout: StateLayout, fill: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._connections, self._processes = [], []
        for rank in layout.ranks:
            here, there = context.Pipe()
            process = context.Process(target=_rank, args=(there, name, layout, rank, fill))
            process.start()
            there.close()
            self._connections.append(here)
            self._processes.append(process)
        self.targets = []
        for connection in self._connections:
            assert connection.poll(LIMIT_S), f"a rank of {name} did not start"
            self.targets.append(RankTarget.FromString(connection.recv_bytes()))

    def post(self, command: Command) -> None:
        for connection in self._connections:
            connection.send_bytes(encode(command))

    def poll(self) -> list[Event]:
        events = []
        for connection in self._connections:
            while connection.poll():
                events.append(cast("Event", decode(connection.recv_bytes())))
        return events

    def close(self) -> None:
        for connection in self._connections:
            connection.send_bytes(b"")
        for process in self._processes:
            process.join(LIMIT_S)
            process.kill()
            process.join()
        for connection in self._connections:
            connection.close()


def _handoffs(name: str, layout: StateLayout, fill: int) -> Handoffs:
    return Handoffs(
        PipedRanks(name, layout, fill),
        layout,
        MODEL,
        worker_id=name,
        timeout_s=TIMEOUT_S,
        lease_s=LEASE_S,
        rng=random.Random(name),
    )


@pytest.fixture
def groups() -> Iterator[tuple[Handoffs, Handoffs]]:
    with ExitStack() as stack:
        prefill = _handoffs("prefill", SOURCE, 2)
        stack.callback(prefill.close)
        decode_side = _handoffs("decode", TARGET, 0)
        stack.callback(decode_side.close)
        yield prefill, decode_side


def test_each_rank_writes_its_part_to_each_rank(groups: tuple[Handoffs, Handoffs]) -> None:
    prefill, decode_side = groups
    ticket = decode_side.receiver.reserve(1, range(TARGET.blocks_for(TOKENS)), 0, TOKENS, 0.0)
    prefill.sender.open(1, ticket, range(SOURCE.blocks_for(TOKENS)), 0, TOKENS, 0.0)
    prefill.sender.advance(1, 20)
    prefill.sender.finish(1, 9, 0.0)
    sent: list[Outcome] = []
    arrived: list[Outcome] = []
    limit_s = time.monotonic() + LIMIT_S
    while not (sent and arrived):
        sent += prefill.poll(0.0)
        arrived += decode_side.poll(0.0)
        assert time.monotonic() < limit_s, f"{sent} {arrived}"

    # Every rank of decode has compared checksums of what each rank of prefill wrote.
    assert arrived == [Arrival(1, TOKENS, 9)]
    (outcome,) = sent
    assert isinstance(outcome, Sent)
    assert outcome.report.kv_bytes == TOKENS * 2 * 2 * 8 * 2 * SMALL.attn_layers
