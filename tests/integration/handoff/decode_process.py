"""A decode worker's end of the hand-off, alone in a process that tests kill or stop."""

from __future__ import annotations

import random
import time
from multiprocessing.connection import Connection

import torch

from tests.integration.handoff.prefill_process import MODEL
from workers.handoff.agent import NixlAgent
from workers.handoff.receiver import HandoffReceiver
from workers.state.geometry import StateGeometry
from workers.state.store import StateStore


def run(connection: Connection, geometry: StateGeometry, tickets: int, tokens: int) -> None:
    """Offer `tickets` reservations, then drive the network until the pipe ends."""
    torch.set_num_threads(1)
    blocks = geometry.blocks_for(tokens)
    store = StateStore(geometry, blocks=tickets * blocks, slots=tickets)
    agent = NixlAgent("decode-test")
    agent.register(store.memory())
    receiver = HandoffReceiver(
        agent, store, MODEL, worker_id="decode-test", lease_s=60.0, rng=random.Random(3)
    )
    offers = [
        receiver.reserve(
            number, range(number * blocks, (number + 1) * blocks), number, tokens, time.monotonic()
        )
        for number in range(tickets)
    ]
    connection.send([offer.SerializeToString() for offer in offers])
    while not connection.poll():
        receiver.poll(time.monotonic())
    receiver.close()
    agent.close()
