"""The native engine as a contender, driven directly: no server, no router, no hand-off."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from pydantic import BaseModel

from orchestrator.bench.contenders.profiling import profile_steps
from orchestrator.bench.contenders.roofline import measure_roofline
from orchestrator.bench.contenders.serving import peak_memory_bytes, reset_peak_memory, serve
from orchestrator.bench.machine import usable_cores
from orchestrator.bench.measures import pooled
from orchestrator.bench.messages import (
    Load,
    Loaded,
    MeasureRoofline,
    Profile,
    Profiled,
    Request,
    Run,
    Speculation,
    Timeline,
)
from protos.tandem.v1.common_pb2 import REASON_CANCELLED, REASON_LENGTH, ReasonCode
from workers.config import WorkerConfig
from workers.engine.commands import Cancel, Prefill, Sampling, WorkItem
from workers.engine.native.engine import NativeEngine
from workers.engine.native.loading import load_native_engine
from workers.model.config import ModelConfig
from workers.telemetry import Tracing

# Few, so that the memory of cached prefixes says nothing about a run that has none.
_CHECKPOINTS = 16
_WARM_STEPS = 4


class NativeContender:
    """One engine. Keys go on counting, so that runs never share one."""

    def __init__(self) -> None:
        self._loaded: tuple[Load, NativeEngine] | None = None
        self._next_key = 0

    def answer(self, request: Request) -> BaseModel:
        if isinstance(request, Load):
            return self._load(request)
        assert self._loaded is not None
        load, engine = self._loaded
        match request:
            case Run():
                return self._run(engine, request)
            case Profile():
                return self._profile(engine, request)
            case MeasureRoofline():
                config = ModelConfig.from_file(Path(load.model))
                return measure_roofline(config, load.dtype, request.batch)

    def _load(self, load: Load) -> Loaded:
        config = WorkerConfig(
            worker_id="bench",
            role="decode",
            model_path=load.model,
            model_name="bench",
            dtype=load.dtype,
            kv_tokens=load.kv_tokens,
            max_requests=load.max_requests,
            max_checkpoints=_CHECKPOINTS,
            step_tokens=load.step_tokens,
            threads=usable_cores(),
            draft_tokens=load.draft_tokens,
        )
        self._loaded = load, load_native_engine(config, Tracing(None)).engine
        return Loaded(versions={"torch": version("torch")})

    def _submit(
        self, engine: NativeEngine, prompts: list[list[int]], output_tokens: list[int]
    ) -> dict[int, int]:
        """Hand all prompts in; the row of each key."""
        rows = {}
        for row, (prompt, wanted) in enumerate(zip(prompts, output_tokens, strict=True)):
            key, self._next_key = self._next_key, self._next_key + 1
            item = WorkItem(key, str(key), Sampling(max_tokens=wanted), len(prompt))
            engine.handle(Prefill(item, tuple(prompt), None))
            rows[key] = row
        return rows

    def _run(self, engine: NativeEngine, run: Run) -> Timeline:
        reset_peak_memory()
        elapsed_s: list[float] = []
        tokens: list[list[int]] = []
        cached = [0] * len(run.prompts)
        speculations: list[Speculation] = []
        began_s = time.perf_counter()
        rows = self._submit(engine, run.prompts, run.output_tokens)
        left = len(rows)
        while left:
            events = engine.step()
            elapsed_s.append(time.perf_counter() - began_s)
            step = [0] * len(rows)
            for made in events.tokens:
                step[rows[made.key]] = len(made.chosen)
            tokens.append(step)
            for done in events.prefill_done:
                cached[rows[done.key]] = done.cached_tokens
            for ended in events.ended:
                _must_be_complete(ended.reason, ended.detail)
                left -= 1
                if ended.speculation is not None:
                    speculations.append(
                        Speculation(
                            steps=ended.speculation.steps,
                            drafted=list(ended.speculation.drafted),
                            accepted=list(ended.speculation.accepted),
                        )
                    )
        return Timeline(
            elapsed_s=elapsed_s,
            tokens=tokens,
            peak_bytes=peak_memory_bytes(),
            speculation=pooled(speculations),
            cached_tokens=cached,
        )

    def _profile(self, engine: NativeEngine, profile: Profile) -> Profiled:
        """Profile decode steps of a whole batch, and forget the batch."""
        steps = 2 * (profile.steps + _WARM_STEPS)
        wanted = [steps * 8] * len(profile.prompts)
        rows = self._submit(engine, profile.prompts, wanted)
        started: set[int] = set()
        while len(started) < len(rows):
            events = engine.step()
            for ended in events.ended:
                _must_be_complete(ended.reason, ended.detail)
            started.update(made.key for made in events.tokens)
        try:
            _repeat(engine.step, _WARM_STEPS)
            return profile_steps(engine.step, profile.steps)
        finally:
            for key in rows:
                engine.handle(Cancel(key, REASON_CANCELLED))
            engine.step()


def _must_be_complete(reason: ReasonCode.ValueType, detail: str) -> None:
    if reason != REASON_LENGTH:
        raise RuntimeError(f"a request ended with {ReasonCode.Name(reason)}: {detail}")


def _repeat(step: Callable[[], object], times: int) -> None:
    for _ in range(times):
        step()


if __name__ == "__main__":
    serve(NativeContender().answer)
