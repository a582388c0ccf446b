"""One end of the hand-offs that are measured: a group's ranks and their memory, without a model.

The decode end runs in a process of its own, as it does in a cluster, and drives the network all the
time. `serve` is what that process does; `Peer` is how the bench speaks to it.
"""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import torch

from workers.handoff.agent import NixlAgent
from workers.handoff.handoffs import Handoffs, Outcome
from workers.handoff.manifest import ModelVersion
from workers.handoff.rank_end import RankEnd
from workers.handoff.ranks import SteppedRanks
from workers.state.layout import StateLayout
from workers.state.store import StateStore

_MODEL = ModelVersion("bench", 0)
_PATIENCE_S = 120.0


class Side:
    """A group that holds one request of up to `tokens` tokens in contiguous blocks."""

    def __init__(self, name: str, layout: StateLayout, tokens: int) -> None:
        self.layout = layout
        self.blocks = range(layout.blocks_for(tokens))
        self.stores = [
            StateStore(layout.rank_geometry, blocks=len(self.blocks), slots=1) for _ in layout.ranks
        ]
        for store in self.stores:
            # Memory that was never written is one shared page of zeros.
            for tensor in (store.tensors.kv, store.tensors.conv, store.tensors.ssm):
                tensor.view(torch.uint8).fill_(1)
        self.agents = [NixlAgent(f"{name}.{rank}") for rank in layout.ranks]
        ends = [
            RankEnd(agent, store, layout, rank, _MODEL, time.monotonic)
            for rank, (agent, store) in enumerate(zip(self.agents, self.stores, strict=True))
        ]
        self.handoffs = Handoffs(
            SteppedRanks(ends, time.monotonic),
            layout,
            _MODEL,
            worker_id=name,
            timeout_s=_PATIENCE_S,
            lease_s=_PATIENCE_S,
            rng=random.Random(name),
        )

    def poll(self) -> list[Outcome]:
        return self.handoffs.poll(time.monotonic())

    def close(self) -> None:
        self.handoffs.close()


class Peer:
    """The decode end, in a child."""

    def __init__(self, layout: StateLayout, tokens: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, there = context.Pipe()
        self._process = context.Process(target=serve, args=(there, layout, tokens), daemon=True)
        self._process.start()
        there.close()

    def ticket(self, tokens: int) -> bytes:
        """Reserve memory for a prompt; a serialized ticket."""
        self._connection.send(tokens)
        answer = self._receive()
        assert isinstance(answer, bytes)
        return answer

    def arrived(self, waiting: Callable[[], object]) -> bool:
        """Whether the state arrived whole; calls `waiting` until it is known."""
        deadline_s = time.monotonic() + _PATIENCE_S
        while not self._connection.poll():
            waiting()
            if time.monotonic() > deadline_s:
                raise TimeoutError("the decode end of the bench does not answer")
        return self._receive() == "Arrival"

    def close(self) -> None:
        self._connection.send(None)
        self._process.join(_PATIENCE_S)
        self._process.kill()
        self._process.join()
        self._connection.close()

    def _receive(self) -> object:
        if not self._connection.poll(_PATIENCE_S):
            raise TimeoutError("the decode end of the bench does not answer")
        return self._connection.recv()


def serve(connection: Connection, layout: StateLayout, tokens: int) -> None:
    """Reserve when asked, say what became of each reservation, until None comes."""
    torch.set_num_threads(1)
    side = Side("decode", layout, tokens)
    handle = 0
    try:
        while True:
            if connection.poll():
                wanted = connection.recv()
                if wanted is None:
                    break
                handle += 1
                ticket = side.handoffs.receiver.reserve(
                    handle, side.blocks, 0, wanted, time.monotonic()
                )
                connection.send(ticket.SerializeToString())
            for outcome in side.poll():
                connection.send(type(outcome).__name__)
    except EOFError:
        pass
    side.close()
