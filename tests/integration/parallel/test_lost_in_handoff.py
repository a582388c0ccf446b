"""A rank is lost while state is on its way: its group ends, the other frees all and says why."""

from __future__ import annotations

import queue
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from protos.tandem.v1.common_pb2 import REASON_LEASE_EXPIRED, REASON_TRANSFER_FAILED, ReasonCode
from protos.tandem.v1.handoff_pb2 import HandoffTicket
from tests.integration.engine.engines import item
from tests.integration.parallel.groups import Reference, worker_config, write_checkpoint
from tests.reference_models import Shape
from workers.config import WorkerConfig
from workers.engine.commands import Prefill, Reserve, Sampling
from workers.engine.events import Credits, StepEvents
from workers.engine.loop import EngineLoop
from workers.engine.native.engine import NativeEngine
from workers.engine.native.loading import load_native_engine
from workers.parallel.errors import RanksLost
from workers.parallel.layout import ParallelLayout
from workers.registry import Role
from workers.telemetry import Tracing

_WAIT_S = 20.0
_LONE = ParallelLayout()
_TP = ParallelLayout.tensor_parallel(2)
_HELIX = ParallelLayout(kvp=2, ep=2)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    folder: Path = tmp_path_factory.mktemp("lost") / "model"
    return write_checkpoint(folder, Shape(pattern="M*E", vocab_size=97), (200,), seed=3)


class Worker:
    """An engine in its loop, and what it says."""

    def __init__(self, reference: Reference, layout: ParallelLayout, role: Role) -> None:
        before = set(psutil.Process().children())
        self.engine: NativeEngine = load_native_engine(
            self._config(reference, layout, role), Tracing(None)
        ).engine
        self.ranks = [child for child in psutil.Process().children() if child not in before]
        self.loop = EngineLoop(self.engine, self._see)
        self._credits: Credits | None = None
        self._seen: queue.SimpleQueue[StepEvents] = queue.SimpleQueue()
        self.loop.start()
        self._running = True

    def until_reserved(self) -> HandoffTicket:
        while True:
            for reserved in self._next().reserved:
                return reserved.ticket

    def until_ended(self) -> ReasonCode.ValueType:
        while True:
            for ended in self._next().ended:
                return ended.reason

    def until_free(self) -> None:
        """Until every token is free again, also those that a writer may still have had."""
        while self._credits is None or self._credits.free_tokens < self._credits.total_tokens:
            self._next()

    def stop(self) -> None:
        if self._running:
            self._running = False
            self.loop.stop()

    def _next(self) -> StepEvents:
        events = self._seen.get(timeout=_WAIT_S)
        self._credits = events.credits or self._credits
        return events

    def _see(self, events: StepEvents) -> None:
        self._seen.put(events)

    @staticmethod
    def _config(reference: Reference, layout: ParallelLayout, role: Role) -> WorkerConfig:
        config = worker_config(
            reference.folder, layout, 0, role=role, max_checkpoints=0, timeout_s=10.0
        )
        return replace(config, handoff_timeout_s=1.0, handoff_lease_s=4.0)


def reserved_for(decode: Worker, reference: Reference) -> Prefill:
    """What to tell prefill, once decode has memory for it."""
    prompt = tuple(reference.prompts[0])
    work = item(1, list(prompt), Sampling(max_tokens=8))
    decode.loop.post(Reserve(work, prompt))
    return Prefill(work, prompt, decode.until_reserved())


@pytest.mark.parametrize("when", ["before the first write", "while it is waited for"])
def test_a_lost_rank_of_decode_ends_its_group_and_frees_prefill(
    reference: Reference, when: str
) -> None:
    prefill, decode = Worker(reference, _LONE, "prefill"), Worker(reference, _HELIX, "decode")
    try:
        (rank,) = decode.ranks
        if when == "while it is waited for":
            # A rank that hangs expects nothing, so that decode cannot grant the claim.
            rank.suspend()
        command = reserved_for(decode, reference)
        if when == "while it is waited for":
            prefill.loop.post(command)
        rank.kill()
        assert isinstance(decode.loop.failed.result(_WAIT_S), RanksLost)
        decode.stop()
        if when == "before the first write":
            prefill.loop.post(command)
        assert prefill.until_ended() == REASON_TRANSFER_FAILED
        prefill.until_free()
    finally:
        prefill.stop()
        decode.stop()
    prefill.engine.audit()


def test_a_lost_rank_of_prefill_ends_its_group_and_decode_gets_its_memory_back(
    reference: Reference,
) -> None:
    prefill, decode = Worker(reference, _TP, "prefill"), Worker(reference, _HELIX, "decode")
    try:
        command = reserved_for(decode, reference)
        (rank,) = prefill.ranks
        # The rank hangs in the middle of the prompt, with the claim made and granted.
        rank.suspend()
        prefill.loop.post(command)
        rank.kill()
        assert isinstance(prefill.loop.failed.result(_WAIT_S), RanksLost)
        prefill.stop()
        assert decode.until_ended() == REASON_LEASE_EXPIRED
        decode.until_free()
    finally:
        prefill.stop()
        decode.stop()
    decode.engine.audit()
