"""Native engines on random checkpoints, driven step by step in the test's own thread."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from protos.tandem.v1.common_pb2 import ReasonCode
from workers.config import WorkerConfig
from workers.engine.commands import Prefill, Reserve, Sampling, WorkItem
from workers.engine.events import Credits, Ended, PrefillDone, Reserved, StepEvents
from workers.engine.native.engine import NativeEngine
from workers.engine.native.loading import load_native_engine
from workers.registry import Role
from workers.telemetry import TraceConfig, start_tracing

# A request that takes more steps than this hangs.
MAX_STEPS = 200_000


def load(
    checkpoint: Path,
    role: Role = "decode",
    *,
    kv_tokens: int = 8192,
    max_requests: int = 8,
    step_tokens: int = 64,
    checkpoint_tokens: int = 32,
    max_checkpoints: int = 16,
    draft_tokens: int | Literal["auto"] = 0,
) -> NativeEngine:
    config = WorkerConfig(
        worker_id=f"{role}-test",
        role=role,
        model_path=str(checkpoint),
        model_name="reference",
        kv_tokens=kv_tokens,
        max_requests=max_requests,
        step_tokens=step_tokens,
        checkpoint_tokens=checkpoint_tokens,
        max_checkpoints=max_checkpoints,
        draft_tokens=draft_tokens,
    )
    return load_native_engine(config, start_tracing("test", TraceConfig())).engine


def item(key: int, prompt: list[int], sampling: Sampling) -> WorkItem:
    return WorkItem(key, f"request-{key}", sampling, len(prompt))


@dataclass
class Record:
    """Everything that engines said about requests, by key."""

    tokens: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    logprobs: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    reserved: dict[int, Reserved] = field(default_factory=dict)
    prefill_done: dict[int, PrefillDone] = field(default_factory=dict)
    ended: dict[int, Ended] = field(default_factory=dict)
    credits: Credits | None = None

    def add(self, events: StepEvents) -> None:
        for row in events.tokens:
            assert row.first_index == len(self.tokens[row.key]), "tokens in order, none twice"
            self.tokens[row.key].extend(choice.token_id for choice in row.chosen)
            self.logprobs[row.key].extend(
                choice.logprob for choice in row.chosen if choice.logprob is not None
            )
        for reserved in events.reserved:
            self.reserved[reserved.key] = reserved
        for done in events.prefill_done:
            self.prefill_done[done.key] = done
        for ended in events.ended:
            assert ended.key not in self.ended, "a request ends once"
            self.ended[ended.key] = ended
        self.credits = events.credits or self.credits

    def reason(self, key: int) -> ReasonCode.ValueType:
        return self.ended[key].reason


def run_colocated(engine: NativeEngine, prompts: list[list[int]], sampling: Sampling) -> Record:
    """All prompts at once on one engine, to the end."""
    record = Record()
    for key, prompt in enumerate(prompts):
        engine.handle(Prefill(item(key, prompt, sampling), tuple(prompt), None))
    for _ in range(MAX_STEPS):
        if len(record.ended) == len(prompts):
            return record
        record.add(engine.step())
    raise AssertionError(f"not ended: {set(range(len(prompts))) - set(record.ended)}")


def run_disaggregated(
    prefill: NativeEngine, decode: NativeEngine, prompts: list[list[int]], sampling: Sampling
) -> tuple[Record, Record, Record]:
    """All prompts over both engines: what prefill said, what decode said, and what a client saw."""
    from_prefill, from_decode, client = Record(), Record(), Record()
    started: set[int] = set()
    for key, prompt in enumerate(prompts):
        decode.handle(Reserve(item(key, prompt, sampling), tuple(prompt)))
    for _ in range(MAX_STEPS):
        done = from_prefill.ended.keys() | from_decode.ended.keys()
        if len(done) == len(prompts):
            return from_prefill, from_decode, client
        for events, own in ((prefill.step(), from_prefill), (decode.step(), from_decode)):
            for row in events.tokens:
                client.tokens[row.key].extend(choice.token_id for choice in row.chosen)
            events.tokens = []
            own.add(events)
        for key in from_decode.reserved.keys() - started:
            started.add(key)
            ticket = from_decode.reserved[key].ticket
            prompt = prompts[key]
            prefill.handle(Prefill(item(key, prompt, sampling), tuple(prompt), ticket))
    raise AssertionError("not ended")
