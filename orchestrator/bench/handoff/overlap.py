"""How much of a hand-off passes while the prompt is still being read: two real engines.

Prefill runs here and decode in a process of its own, both with the given model, one thread each.
"""

from __future__ import annotations

import multiprocessing
import queue
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

from orchestrator.bench.prompts import PromptSource
from protos.tandem.v1.handoff_pb2 import HandoffTicket
from workers.config import WorkerConfig
from workers.engine.commands import Prefill, Reserve, Sampling, WorkItem
from workers.engine.events import PrefillDone, StepEvents
from workers.engine.loop import EngineLoop
from workers.engine.native.loading import load_native_engine
from workers.registry import Role
from workers.telemetry import TraceConfig, Tracing, start_tracing

CHUNK_TOKENS = 256
_PATIENCE_S = 120.0
_SAMPLING = Sampling(max_tokens=2)


@dataclass(frozen=True, slots=True)
class Hidden:
    """Medians over rounds of prompts of `chunks` chunks."""

    chunks: int
    tokens: int
    prefill_ms: float
    transfer_ms: float
    handoff_ms: float
    descriptors: int
    share_hidden: float

    def row(self) -> dict[str, object]:
        """As the document has it."""
        return {
            "chunks": self.chunks,
            "tokens": self.tokens,
            "prefill_ms": round(self.prefill_ms, 3),
            "transfer_ms": round(self.transfer_ms, 3),
            "handoff_ms": round(self.handoff_ms, 3),
            "descriptors": self.descriptors,
            "share_hidden": round(self.share_hidden, 3),
        }


class _Engine:
    """An engine in its thread, as a worker runs it."""

    def __init__(self, role: Role, model: Path, most_tokens: int) -> None:
        loaded = load_native_engine(_config(role, model, most_tokens), _tracing())
        self.vocab_size = loaded.vocab_size
        self.events: queue.SimpleQueue[StepEvents] = queue.SimpleQueue()
        self._loop = EngineLoop(loaded.engine, self.events.put)
        self.post = self._loop.post
        self._loop.start()

    def close(self) -> None:
        self._loop.stop()


def measure_overlap(model: Path, chunk_counts: tuple[int, ...], rounds: int) -> list[Hidden]:
    """Hand prompts over one by one, a different one each time."""
    most = max(chunk_counts) * CHUNK_TOKENS
    context = multiprocessing.get_context("spawn")
    connection, there = context.Pipe()
    process = context.Process(target=_decode, args=(there, model, most), daemon=True)
    process.start()
    there.close()
    engine = _Engine("prefill", model, most)
    source = PromptSource.of_model(model, engine.vocab_size)
    try:
        found = []
        for chunks in chunk_counts:
            prompts = source.deal(f"handoff {chunks}", rounds + 1, chunks * CHUNK_TOKENS)
            done = [
                _hand_off(engine, connection, chunks * 1000 + turn, tuple(prompt))
                for turn, prompt in enumerate(prompts)
            ]
            found.append(_medians(chunks, done[1:]))  # the first one connects
        return found
    finally:
        engine.close()
        connection.send(None)
        process.join(_PATIENCE_S)
        process.kill()
        process.join()
        connection.close()


def _hand_off(
    engine: _Engine, decode: Connection, key: int, prompt: tuple[int, ...]
) -> PrefillDone:
    decode.send((key, prompt))
    if not decode.poll(_PATIENCE_S):
        raise TimeoutError("the decode engine of the bench does not answer")
    ticket = HandoffTicket.FromString(decode.recv())
    engine.post(Prefill(WorkItem(key, str(key), _SAMPLING, len(prompt)), prompt, ticket))
    while True:
        events = engine.events.get(timeout=_PATIENCE_S)
        if events.ended:
            raise RuntimeError(f"the hand-off failed: {events.ended[0]}")
        if events.prefill_done:
            return events.prefill_done[0]


def _medians(chunks: int, done: list[PrefillDone]) -> Hidden:
    reports = [each.handoff for each in done if each.handoff is not None]
    return Hidden(
        chunks,
        chunks * CHUNK_TOKENS,
        median(each.prefill_ms for each in done),
        median(report.transfer_ms for report in reports),
        median(report.handoff_ms for report in reports),
        reports[-1].descriptors,
        median(report.hidden_ms / report.transfer_ms for report in reports),
    )


def _decode(connection: Connection, model: Path, most_tokens: int) -> None:
    """Reserve when asked, and drop each request when its state has arrived."""
    engine = _Engine("decode", model, most_tokens)
    while (request := connection.recv()) is not None:
        key, prompt = request
        engine.post(Reserve(WorkItem(key, str(key), _SAMPLING, len(prompt)), prompt))
        ended = False
        while not ended:
            events = engine.events.get(timeout=_PATIENCE_S)
            for reserved in events.reserved:
                connection.send(reserved.ticket.SerializeToString())
            ended = bool(events.ended)
    engine.close()


def _config(role: Role, model: Path, most_tokens: int) -> WorkerConfig:
    return WorkerConfig(
        worker_id=f"{role}-bench",
        role=role,
        model_path=str(model),
        model_name="bench",
        kv_tokens=2 * most_tokens + 64,
        max_requests=4,
        max_checkpoints=0,
        step_tokens=CHUNK_TOKENS,
        checkpoint_tokens=CHUNK_TOKENS,
        draft_tokens=0,
    )


def _tracing() -> Tracing:
    return start_tracing("bench", TraceConfig())
