"""Measures steps of the native engine in this process: reading prompts, decoding, drafting."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from orchestrator.calibration.fit import Measurement
from orchestrator.errors import UserError
from protos.tandem.v1.common_pb2 import REASON_CANCELLED, REASON_LENGTH, ReasonCode
from workers.config import Dtype, WorkerConfig
from workers.engine.commands import Cancel, Prefill, Sampling, WorkItem
from workers.engine.events import StepEvents
from workers.engine.native.engine import NativeEngine
from workers.engine.native.loading import load_native_engine
from workers.telemetry import Tracing

_CHUNK_TOKENS = 256
_PROMPTS = (16, 48, 128, 256, 768)
_BATCHES = (1, 4, 12, 32)
_CONTEXTS = (32, 640)
_DRAFTED_BATCHES = (1, 8)
_READ_TIMES = 3
_DECODE_STEPS = 12
_WARM_STEPS = 2


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured. `drafts` is the draft length to measure too, 0 for models without MTP."""

    model: Path
    dtype: Dtype
    threads: int
    drafts: int
    vocab_size: int


def measure(subject: Subject, report: Callable[[str], None]) -> list[Measurement]:
    """All measurements; under a minute for models that a laptop serves."""
    found = []
    with _engine(subject, 0) as probe:
        for tokens in _PROMPTS:
            report(f"reading prompts of {tokens} tokens")
            found += probe.read(tokens)
        for context in _CONTEXTS:
            for batch in _BATCHES:
                report(f"decoding {batch} requests of {context} tokens")
                found.append(probe.decode(batch, context))
    if subject.drafts:
        with _engine(subject, subject.drafts) as probe:
            for batch in _DRAFTED_BATCHES:
                report(f"decoding {batch} requests with {subject.drafts} drafts")
                found.append(probe.decode(batch, _CONTEXTS[0]))
    return found


@contextmanager
def _engine(subject: Subject, drafts: int) -> Iterator[_Probe]:
    config = WorkerConfig(
        worker_id="calibrate",
        role="decode",
        model_path=str(subject.model),
        model_name="calibrate",
        dtype=subject.dtype,
        kv_tokens=max(_BATCHES) * (max(_CONTEXTS) + 512),
        max_requests=max(_BATCHES),
        max_checkpoints=0,
        step_tokens=_CHUNK_TOKENS,
        checkpoint_tokens=_CHUNK_TOKENS,
        threads=subject.threads,
        draft_tokens=drafts,
    )
    engine = load_native_engine(config, Tracing(None)).engine
    try:
        yield _Probe(engine, subject.vocab_size, drafts)
    finally:
        engine.close()


class _Probe:
    """Runs requests through one engine and times its steps."""

    def __init__(self, engine: NativeEngine, vocab_size: int, drafts: int) -> None:
        self._engine = engine
        self._vocab_size = vocab_size
        self._drafts = drafts
        self._next_key = 0

    def read(self, tokens: int) -> list[Measurement]:
        """The chunks of one prompt, each the median of a few times."""
        chunks = -(-tokens // _CHUNK_TOKENS)
        seconds: list[list[float]] = [[] for _ in range(chunks)]
        for turn in range(_READ_TIMES + 1):
            self._submit(tokens, 1)
            for times in seconds:
                took_s, events = self._step()
                if turn:
                    times.append(took_s)
            _must_have_ended(events)
        return [
            Measurement(
                seconds=median(times),
                prompt_tokens=min(_CHUNK_TOKENS, tokens - index * _CHUNK_TOKENS),
                read_tokens=index * _CHUNK_TOKENS,
            )
            for index, times in enumerate(seconds)
        ]

    def decode(self, batch: int, context: int) -> Measurement:
        """A step in which a whole batch decodes, the median of a few."""
        steps = _WARM_STEPS + _DECODE_STEPS
        wanted = (steps + context * batch // _CHUNK_TOKENS + batch + 2) * (self._drafts + 1)
        keys = [self._submit(context, wanted) for _ in range(batch)]
        started: set[int] = set()
        made = 0
        while len(started) < batch:
            _, events = self._step()
            made += sum(len(row.chosen) for row in events.tokens)
            started.update(row.key for row in events.tokens)
        times = []
        before = made
        for turn in range(steps):
            took_s, events = self._step()
            if events.ended:
                raise UserError("a request ended while it was measured: the model is too short")
            made += sum(len(row.chosen) for row in events.tokens)
            if turn >= _WARM_STEPS:
                times.append(took_s)
        for key in keys:
            self._engine.handle(Cancel(key, REASON_CANCELLED))
        self._engine.step()
        return Measurement(
            seconds=median(times),
            sequences=batch,
            context_tokens=context + (before + made) / 2.0 / batch,
            draft_tokens=self._drafts,
        )

    def _submit(self, tokens: int, wanted: int) -> int:
        key, self._next_key = self._next_key, self._next_key + 1
        item = WorkItem(key, str(key), Sampling(max_tokens=wanted), tokens)
        # Different prompts, so that no prefix is shared.
        prompt = tuple((7 * at + 31 * key + 5) % self._vocab_size for at in range(tokens))
        self._engine.handle(Prefill(item, prompt, None))
        return key

    def _step(self) -> tuple[float, StepEvents]:
        began_s = time.perf_counter()
        events = self._engine.step()
        return time.perf_counter() - began_s, events


def _must_have_ended(events: StepEvents) -> None:
    reasons = [ended.reason for ended in events.ended]
    if reasons != [REASON_LENGTH]:
        names = [ReasonCode.Name(reason) for reason in reasons]
        raise UserError(f"the engine did not read a prompt in the expected steps: {names}")
