"""How long an answer pauses when it goes on at another decode worker, as its client sees it.

Two decode workers in processes of their own and the router's dispatcher here; one answer streams,
its worker is drained in the middle, and the longest wait for tokens from then on is the pause.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

from orchestrator.bench.prompts import PromptSource
from orchestrator.runtime.child import Child
from router.config import PriorityClass, RouterConfig
from router.core.request import State
from router.dispatcher import Dispatcher
from router.requests import ClientRequest, Finished
from workers.config import WorkerConfig
from workers.registry import WorkerRecord

_READY_S = 120.0
_BEFORE_TOKENS = 32  # made when the worker is drained
_ANSWER_TOKENS = 160
_PATIENT = PriorityClass("patient", ttft_ms=600_000.0, itl_ms=10_000.0)


@dataclass(frozen=True, slots=True)
class Paused:
    """Medians over rounds of answers to prompts of `tokens` tokens."""

    tokens: int
    itl_ms: float
    pause_ms: float
    longest_pause_ms: float

    def row(self) -> dict[str, object]:
        """As the document has it."""
        return {
            "tokens": self.tokens,
            "itl_ms": round(self.itl_ms, 3),
            "pause_ms": round(self.pause_ms, 3),
            "longest_pause_ms": round(self.longest_pause_ms, 3),
        }


@dataclass(frozen=True, slots=True)
class _Moved:
    """One answer: its usual wait for tokens, and the longest one as it moved."""

    itl_ms: float
    pause_ms: float


def measure_migration(model: Path, lengths: tuple[int, ...], rounds: int) -> list[Paused]:
    """Move answers to prompts of each length to and fro. Raises UserError for workers that do not
    start, and RuntimeError for an answer that does not move."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tandem-bench-")))
        workers = []
        for name in ("one", "other"):
            config = _config(name, model, max(lengths))
            worker = Child(name, ["workers.server"], config.to_json(), folder / f"{name}.log")
            stack.callback(worker.stop)
            workers.append(worker)
        records = [WorkerRecord.from_json(worker.wait_ready(_READY_S)) for worker in workers]
        source = PromptSource.of_model(model, records[0].vocab_size)
        return asyncio.run(_measure(model, records, source, lengths, rounds))


async def _measure(
    model: Path,
    records: list[WorkerRecord],
    source: PromptSource,
    lengths: tuple[int, ...],
    rounds: int,
) -> list[Paused]:
    async with _router(model, records) as router:
        found = []
        for tokens in lengths:
            prompts = source.deal(f"migration {tokens}", rounds + 1, tokens)
            # The first one connects.
            moved = [await _move(router, prompt, records) for prompt in prompts][1:]
            pauses = [one.pause_ms for one in moved]
            itl_ms = median(one.itl_ms for one in moved)
            found.append(Paused(tokens, itl_ms, median(pauses), max(pauses)))
        return found


@contextlib.asynccontextmanager
async def _router(model: Path, records: list[WorkerRecord]) -> AsyncIterator[Dispatcher]:
    dispatcher = Dispatcher(
        RouterConfig(
            model_path=str(model),
            model_name=records[0].model_name,
            workers=tuple(records),
            classes=(_PATIENT,),
        )
    )
    try:
        yield await dispatcher.start()
    finally:
        await dispatcher.stop()


async def _move(router: Dispatcher, prompt: list[int], records: list[WorkerRecord]) -> _Moved:
    """Stream one answer, and drain the worker that makes it."""
    client = ClientRequest(
        prompt=prompt, max_tokens=_ANSWER_TOKENS, temperature=0.0, ignore_eos=True
    )
    request = await router.prepare(client)
    came_s: list[float] = []
    drained, tokens, moved_from = "", 0, 0
    async with contextlib.aclosing(router.generate(request)) as items:
        async for item in items:
            if isinstance(item, Finished):
                break
            came_s.append(time.monotonic())
            tokens += len(item.token_ids)
            if tokens >= _BEFORE_TOKENS and not drained:
                drained = next(name for name in _names(records) if _works(router, name))
                moved_from = len(came_s) - 1
                router.drain(drained)
    router.drain(drained, resume=True)
    story = router.explain(request.request_id)
    if story is None or State.MIGRATING not in [step.state for step in story.transitions]:
        raise RuntimeError(f"an answer to {len(prompt)} tokens did not leave its drained worker")
    gaps_ms = [1e3 * (after - before) for before, after in pairwise(came_s)]
    return _Moved(median(gaps_ms), max(gaps_ms[moved_from:]))


def _names(records: list[WorkerRecord]) -> list[str]:
    return [record.worker_id for record in records]


def _works(router: Dispatcher, worker_id: str) -> bool:
    view = router.worker(worker_id)
    return view is not None and bool(view.holds)


def _config(name: str, model: Path, most_tokens: int) -> WorkerConfig:
    return WorkerConfig(
        worker_id=name,
        role="decode",
        model_path=str(model),
        model_name="bench",
        kv_tokens=4 * (most_tokens + _ANSWER_TOKENS),
        max_requests=4,
        max_checkpoints=0,
        draft_tokens=0,
    )
