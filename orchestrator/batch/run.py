"""One batch from file to file."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from orchestrator.batch.engines import running_engines
from orchestrator.batch.lines import BatchAnswer
from orchestrator.batch.serving import serve_lines
from orchestrator.errors import UserError
from orchestrator.runtime.preflight import check_model, check_vllm
from orchestrator.runtime.run_file import log_folder
from orchestrator.runtime.worker_configs import trace_config
from orchestrator.spec import ClusterSpec
from router.config import PriorityClass, RouterConfig
from router.dispatcher import Dispatcher
from router.text.text_model import ModelFilesError
from workers.registry import WorkerRecord

# Nobody waits for a line: none is shed for coming late, and no step is kept short for another.
_OFFLINE = PriorityClass("offline", ttft_ms=86_400_000.0, itl_ms=60_000.0)


@dataclass(slots=True)
class BatchSummary:
    """What a batch came to."""

    lines: int
    failed: int = 0
    tokens: int = 0
    seconds: float = 0.0


def read_lines(path: Path) -> list[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers from 1."""
    raw = path.read_bytes().splitlines()
    return [(number, line) for number, line in enumerate(raw, start=1) if line.strip()]


def run_batch(
    spec: ClusterSpec,
    lines: list[tuple[int, bytes]],
    output: TextIO,
    colocated: bool,
    report: Callable[[str], None],
    answered: Callable[[], None],
) -> BatchSummary:
    """Start engines, answer every line in order into `output`, end the engines.

    `answered` is called for each line. Raises UserError when the model cannot be served at all.
    """
    check_model(spec.model.path)
    check_vllm(spec)
    summary = BatchSummary(lines=len(lines))

    def write(answer: BatchAnswer) -> None:
        output.write(answer.to_json() + "\n")
        summary.tokens += len(answer.token_ids)
        summary.failed += answer.error is not None
        answered()

    log_dir = log_folder(f"batch-{secrets.token_hex(4)}")
    with (
        _logging_to(log_dir / "router.log"),
        running_engines(spec, colocated, log_dir, report) as engines,
    ):
        report("answering")
        began = time.monotonic()
        asyncio.run(_dispatch(spec, engines.records, lines, write))
        summary.seconds = time.monotonic() - began
        engines.check_alive()
    return summary


@contextlib.contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """The router's core logs to a file here, since standard error is for the person."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()


async def _dispatch(
    spec: ClusterSpec,
    workers: tuple[WorkerRecord, ...],
    lines: list[tuple[int, bytes]],
    write: Callable[[BatchAnswer], None],
) -> None:
    # Enough to keep decode full while as many prompts again are being read or wait.
    concurrency = 2 * spec.decode.max_requests
    config = RouterConfig(
        model_path=spec.model.path,
        model_name=spec.model.name,
        cluster="batch",
        workers=workers,
        classes=(_OFFLINE,),
        queue_limit=concurrency,
        trace=trace_config(spec),
    )
    try:
        dispatcher = Dispatcher(config)
    except ModelFilesError as error:
        raise UserError(str(error), "correct the files of the checkpoint") from error
    try:
        await dispatcher.start()
        await serve_lines(lines, dispatcher, concurrency, write)
    finally:
        await dispatcher.stop()
