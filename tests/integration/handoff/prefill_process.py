"""A prefill worker's end of the hand-off, alone in a process, told what to do over a pipe.

The process owns a small store with known random contents. It answers every command, so that tests
wait for answers and never for time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch

from protos.tandem.v1.handoff_pb2 import HandoffTicket, Manifest
from workers.handoff.agent import NixlAgent
from workers.handoff.manifest import ModelVersion, make_manifest
from workers.handoff.sender import HandoffSender, SendFailed, Sent
from workers.handoff.ticket import plan_write
from workers.state.geometry import StateGeometry
from workers.state.store import StateStore

MODEL = ModelVersion("a-model", 3)
Tamper = Callable[[Manifest], bytes]


@dataclass(frozen=True, slots=True)
class Job:
    """One request to hand off; `ticket` is serialized."""

    handle: int
    ticket: bytes
    blocks: tuple[int, ...]
    slot: int
    tokens: int
    first_token_id: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the sender reported: a reason of 0 means that all was sent."""

    handle: int
    reason: int
    detail: str
    kv_bytes: int = 0
    mamba_bytes: int = 0
    descriptors: int = 0
    transfer_ms: float = 0.0
    handoff_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class SendAll:
    """Hand all jobs off at once; answered by their outcomes, in the order of their ends."""

    jobs: tuple[Job, ...]


@dataclass(frozen=True, slots=True)
class SendTampered:
    """Write the state of a job with another notification in place of its manifest.

    `tamper` makes it from the right manifest. With `corrupt_byte` a byte of the local state is
    changed after it was hashed. Answered by an empty list.
    """

    job: Job
    tamper: Tamper
    corrupt_byte: bool = False


Command = SendAll | SendTampered | None


def fill(store: StateStore, seed: int) -> None:
    """Random bytes everywhere, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in (store.tensors.kv, store.tensors.conv, store.tensors.ssm):
        flat = tensor.view(-1).view(torch.uint8)
        flat.copy_(torch.randint(0, 256, flat.shape, dtype=torch.uint8, generator=generator))


def run(
    connection: Connection, geometry: StateGeometry, blocks: int, slots: int, seed: int
) -> None:
    """Serve commands until None or the end of the pipe."""
    torch.set_num_threads(1)
    store = StateStore(geometry, blocks=blocks, slots=slots)
    agent = NixlAgent("prefill-test")
    agent.register(store.memory())
    sender = HandoffSender(agent, store, MODEL, timeout_s=20.0)
    connection.send("ready")
    try:
        while True:
            command = connection.recv()
            fill(store, seed)  # sending zeroes the tails of blocks
            match command:
                case SendAll(jobs):
                    connection.send(_send_all(sender, jobs))
                case SendTampered():
                    _send_tampered(agent, store, command)
                    connection.send([])
                case _:
                    return
    except EOFError:
        return
    finally:
        sender.close()
        agent.close()


def _send_all(sender: HandoffSender, jobs: tuple[Job, ...]) -> list[Outcome]:
    for job in jobs:
        ticket = HandoffTicket.FromString(job.ticket)
        sender.start(
            job.handle,
            ticket,
            job.blocks,
            job.slot,
            job.tokens,
            job.first_token_id,
            time.monotonic(),
        )
    outcomes: list[Outcome] = []
    while len(outcomes) < len(jobs):
        outcomes += [_plain(ended) for ended in sender.poll(time.monotonic())]
    return outcomes


def _plain(ended: Sent | SendFailed) -> Outcome:
    if isinstance(ended, SendFailed):
        return Outcome(ended.handle, ended.reason, ended.detail)
    report = ended.report
    return Outcome(
        ended.handle,
        0,
        "",
        report.kv_bytes,
        report.mamba_bytes,
        report.descriptors,
        report.transfer_ms,
        report.handoff_ms,
    )


def _send_tampered(agent: NixlAgent, store: StateStore, command: SendTampered) -> None:
    job = command.job
    ticket = HandoffTicket.FromString(job.ticket)
    regions = store.layout.regions(job.blocks, job.slot, job.tokens)
    plan = plan_write(ticket, MODEL, store, regions)
    manifest = make_manifest(store, regions, ticket, MODEL, job.tokens, job.first_token_id)
    if command.corrupt_byte:
        bits = store.tensors.kv[job.blocks[0]].view(torch.uint8).view(-1)
        bits[7] ^= 1
    transfer = agent.write(plan.copies, store.memory(), plan.remote, command.tamper(manifest))
    while not transfer.poll():
        pass
    transfer.release()
