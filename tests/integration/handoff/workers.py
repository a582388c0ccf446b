"""The hand-off layer of a worker, complete but for a model: what an engine does, done by hand.

Each has real agents and memory, and keeps the accounts as the engine does. Its clock is set by the
test. `Remote` runs one in a process of its own, so that it can be stopped or killed.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Protocol

import torch

from protos.tandem.v1.common_pb2 import REASON_CANCELLED, REASON_OUT_OF_CAPACITY, ReasonCode
from protos.tandem.v1.handoff_pb2 import HandoffTicket, StateKind
from tests.integration.handoff.namespaces import enter
from tests.unit.state.shapes import Memory, Whole
from workers.handoff.agent import NixlAgent
from workers.handoff.handoffs import Handoffs, Outcome
from workers.handoff.manifest import ModelVersion
from workers.handoff.messages import Event
from workers.handoff.rank_end import RankEnd
from workers.handoff.ranks import SteppedRanks
from workers.handoff.receiver import Arrival, Refusal, Released
from workers.handoff.sender import SendFailed, Sent
from workers.state.layout import StateLayout
from workers.state.memory import OutOfMemory, StateMemory
from workers.state.reshard import Places
from workers.state.store import Spans, StateStore

MODEL = ModelVersion("a-model", 3)
LEASE_S, TIMEOUT_S = 60.0, 30.0
LIMIT_S = 30.0  # of real time, for anything that must happen
SLOTS = 4


class CorruptStore(StateStore):
    """Memory that reads differently when it is hashed than when it is sent, once told so."""

    corrupt = False

    def contents(
        self, kind: StateKind.ValueType, offsets: Spans, lengths: Spans
    ) -> Iterator[memoryview]:
        for view in super().contents(kind, offsets, lengths):
            if self.corrupt:
                yield memoryview(bytes([view[0] ^ 1]) + bytes(view[1:]))
            else:
                yield view


@dataclass(frozen=True, slots=True)
class Setup:
    """What a worker is made of."""

    name: str
    layout: StateLayout
    blocks: int = 24
    fill: int = 0
    lease_s: float = LEASE_S
    timeout_s: float = TIMEOUT_S
    model: ModelVersion = MODEL
    namespace: str = ""  # a network namespace, in which only TCP leads to other workers


class HeldRanks(SteppedRanks):
    """Ranks whose events can be put back, to be heard later."""

    @property
    def kept(self) -> int:
        return len(self._events)

    def keep(self, events: list[Event]) -> None:
        self._events = events + self._events


class Worker:
    """A worker in this process; all its ranks work in `step`."""

    def __init__(self, setup: Setup) -> None:
        torch.set_num_threads(1)
        self.setup = setup
        self.layout = setup.layout
        self.now_s = 0.0
        self.stores = [
            CorruptStore(setup.layout.rank_geometry, blocks=setup.blocks, slots=SLOTS)
            for _ in setup.layout.ranks
        ]
        for store in self.stores:
            for memory in memory_of(store).values():
                memory[:] = setup.fill
        self.ends = [
            RankEnd(
                NixlAgent(f"{setup.name}.{rank}"),
                store,
                setup.layout,
                rank,
                setup.model,
                time.monotonic,
            )
            for rank, store in enumerate(self.stores)
        ]
        self._ranks = HeldRanks(self.ends, time.monotonic)
        self.handoffs = Handoffs(
            self._ranks,
            setup.layout,
            setup.model,
            worker_id=setup.name,
            timeout_s=setup.timeout_s,
            lease_s=setup.lease_s,
            rng=random.Random(setup.name),
        )
        self.accounts = StateMemory(
            blocks=setup.blocks,
            block_tokens=setup.layout.block_span_tokens,
            max_requests=SLOTS,
        )
        self.outcomes: list[Outcome] = []
        self.deaf = False  # its ranks work on, but rank 0 hears nothing of it

    # What a decode engine does.

    def reserve(self, handle: int, tokens: int) -> bytes | ReasonCode.ValueType:
        """A serialized ticket, or why there is none."""
        try:
            held = self.accounts.allocate(handle, tokens, leased=True)
        except OutOfMemory:
            return REASON_OUT_OF_CAPACITY
        ticket = self.handoffs.receiver.reserve(handle, held.blocks, held.slot, tokens, self.now_s)
        return ticket.SerializeToString()

    def cancel_reservation(self, handle: int) -> None:
        if self.handoffs.receiver.cancel(handle, REASON_CANCELLED, self.now_s):
            self.accounts.quarantine(handle)
        else:
            self.accounts.free(handle)

    # What a prefill engine does.

    def open(self, handle: int, ticket: bytes, tokens: int, seed: int = 0) -> None:
        """Take memory for a prompt, fill it with the state made of `seed`, and ask for leave."""
        held = self.accounts.allocate(handle, tokens)
        places = Places(held.blocks, held.slot)
        whole = Whole.random(self.layout.geometry, tokens, seed)
        for rank, store in enumerate(self.stores):
            whole.place(self.layout, rank, places, memory_of(store))
        self.handoffs.sender.open(
            handle, HandoffTicket.FromString(ticket), held.blocks, held.slot, tokens, self.now_s
        )

    def advance(self, handle: int, tokens: int) -> None:
        self.handoffs.sender.advance(handle, tokens)

    def finish(self, handle: int, first_token_id: int) -> None:
        self.handoffs.sender.finish(handle, first_token_id, self.now_s)

    def abort(self, handle: int) -> None:
        self.handoffs.sender.abort(handle, REASON_CANCELLED, "cancelled")

    def corrupt(self) -> None:
        """From now on nothing that is sent or received has the checksum that it should."""
        for store in self.stores:
            store.corrupt = True

    # What both do.

    def renew(self, handle: int) -> None:
        self.handoffs.renew(handle, self.now_s)

    def hear(self, *, anything: bool) -> None:
        self.deaf = not anything

    def unheard(self) -> int:
        """Events of the ranks that rank 0 has not heard of."""
        return self._ranks.kept

    def pass_time(self, seconds: float) -> None:
        """Let time pass as for an engine that goes on stepping, which short leases rely on."""
        end_s, stride_s = self.now_s + seconds, self.handoffs.receiver.lease_s / 4.0
        while self.now_s < end_s:
            self.now_s = min(self.now_s + stride_s, end_s)
            self.step()

    def step(self) -> None:
        """Drive the network, and settle accounts as the engine does."""
        if self.deaf:
            self._ranks.keep(self._ranks.poll())
            return
        for outcome in self.handoffs.poll(self.now_s):
            self.outcomes.append(outcome)
            match outcome:
                case Arrival(handle):
                    self.accounts.settle(handle)
                    self.accounts.free(handle)
                case Refusal(handle, _, _, quarantined):
                    if quarantined:
                        self.accounts.quarantine(handle)
                    else:
                        self.accounts.free(handle)
                case Released(handle):
                    self.accounts.end_quarantine(handle)
                case Sent(handle, _) | SendFailed(handle, _, _):
                    self.accounts.free(handle)

    def seen(self) -> list[Outcome]:
        """All outcomes so far."""
        return list(self.outcomes)

    def opened(self, handle: int) -> bool:
        """Whether a hand-off is on its way out."""
        return self.handoffs.sender._find(handle) is not None

    def granted(self, handle: int) -> bool:
        """Whether decode has given leave to write."""
        return self.handoffs.sender.granted(handle)

    def parts(self, handle: int) -> int:
        """Parts of a reservation that were checked, on all ranks."""
        receivers = [end._receiver for end in self.ends]
        return sum(
            len(pair.extents)
            for receiver in receivers
            for expected in receiver._expected.values()
            for pair in expected.pairs.values()
        )

    def audit(self) -> tuple[int, int, int]:
        """Blocks that are held, leased and quarantined; raises if accounts do not balance."""
        self.accounts.audit()
        blocks, _ = self.accounts.accounts
        return blocks.allocated, blocks.leased, blocks.quarantined

    def close(self) -> None:
        self.handoffs.close()


def memory_of(store: StateStore) -> Memory:
    """The bytes of every kind, live."""
    tensors = store.tensors
    kinds = {
        StateKind.STATE_KIND_ATTENTION_KV: by_head(tensors.kv),
        StateKind.STATE_KIND_MAMBA_CONV: tensors.conv,
        StateKind.STATE_KIND_MAMBA_SSM: tensors.ssm,
        StateKind.STATE_KIND_DRAFT_KV: by_head(tensors.draft_kv),
        StateKind.STATE_KIND_DRAFT_HIDDEN: store.draft_hidden,
    }
    return {kind: each.view(-1).view(torch.uint8).numpy() for kind, each in kinds.items()}


def by_head(kv: torch.Tensor) -> torch.Tensor:
    """KV as it lies in memory; fails when that is another order."""
    return kv.permute(0, 3, 1, 2, 4, 5)


class Driven(Protocol):
    """A worker here or elsewhere."""

    def step(self) -> None: ...


@dataclass(slots=True)
class Remote:
    """A worker in a process of its own, which drives the network while nobody asks it anything."""

    setup: Setup
    process: multiprocessing.process.BaseProcess = field(init=False)
    connection: Connection = field(init=False)

    def __post_init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, there = context.Pipe()
        self.process = context.Process(target=_serve, args=(there, self.setup))
        self.process.start()
        there.close()
        assert self.connection.poll(LIMIT_S), f"{self.setup.name} did not start"
        self.connection.recv()

    def ask(self, method: str, *arguments: object, **keywords: object) -> object:
        """Call a method of the worker."""
        self.send(method, *arguments, **keywords)
        return self.answer()

    def send(self, method: str, *arguments: object, **keywords: object) -> None:
        """Begin to call a method."""
        self.connection.send((method, arguments, keywords))

    def answer(self) -> object:
        """What the method that was sent returns."""
        assert self.connection.poll(LIMIT_S), f"{self.setup.name} does not answer"
        return self.connection.recv()

    def seen(self) -> list[Outcome]:
        outcomes = self.ask("seen")
        assert isinstance(outcomes, list)
        return outcomes

    def step(self) -> None:
        """It steps on its own."""

    def kill(self) -> None:
        """End it as the kernel would."""
        self.process.kill()
        self.process.join(LIMIT_S)

    def stop(self) -> None:
        """Keep it alive but hanging."""
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGCONT)

    def close(self) -> None:
        if self.process.is_alive():
            self.resume()
            self.connection.send(None)
            self.process.join(LIMIT_S)
        self.process.kill()
        self.process.join(LIMIT_S)
        self.connection.close()


def _serve(connection: Connection, setup: Setup) -> None:
    if setup.namespace:
        os.environ["UCX_TLS"] = "tcp"
        enter(setup.namespace)
    worker = Worker(setup)
    connection.send("ready")
    try:
        while True:
            if connection.poll(0.0005):
                request = connection.recv()
                if request is None:
                    break
                method, arguments, keywords = request
                connection.send(getattr(worker, method)(*arguments, **keywords))
            worker.step()
    except EOFError:
        pass
    worker.close()


def wait(condition: Callable[[], bool], workers: Sequence[Driven], what: str) -> None:
    """Drive workers until something is so."""
    limit_s = time.monotonic() + LIMIT_S
    while not condition():
        for worker in workers:
            worker.step()
        assert time.monotonic() < limit_s, f"not within {LIMIT_S} s: {what}"
