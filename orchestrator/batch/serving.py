"""Runs the lines of a batch through a dispatcher: many at once, answered in their order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import aclosing

from orchestrator.answers import finish_reason
from orchestrator.batch.lines import BatchAnswer, BatchLine, LineError, failed, parse_line
from router.core.tokens import TokenLogprob
from router.dispatcher import Dispatcher
from router.errors import RequestError
from router.requests import Finished


async def serve_lines(
    lines: Sequence[tuple[int, bytes]],
    dispatcher: Dispatcher,
    concurrency: int,
    write: Callable[[BatchAnswer], None],
) -> None:
    """Answer every line, a bad one with its error; at most `concurrency` are under way at once."""
    slots = asyncio.Semaphore(concurrency)
    pending: deque[asyncio.Task[BatchAnswer]] = deque()
    async with asyncio.TaskGroup() as tasks:
        for number, raw in lines:
            await slots.acquire()
            task = tasks.create_task(_answer(number, raw, dispatcher))
            task.add_done_callback(lambda _: slots.release())
            pending.append(task)
            while pending and pending[0].done():
                write(pending.popleft().result())
        while pending:
            write(await pending.popleft())


async def _answer(number: int, raw: bytes, dispatcher: Dispatcher) -> BatchAnswer:
    try:
        line = parse_line(number, raw)
    except LineError as error:
        return failed(error)
    try:
        return await _generate(number, line, dispatcher)
    except RequestError as error:
        return failed(LineError(number, f"line {number}: {error.message}", line.id))


async def _generate(number: int, line: BatchLine, dispatcher: Dispatcher) -> BatchAnswer:
    """Raises RequestError for a request that the router refuses."""
    request = await dispatcher.prepare(line.request())
    token_ids: list[int] = []
    logprobs: list[TokenLogprob] = []
    text: list[str] = []
    finished: Finished | None = None
    async with aclosing(dispatcher.generate(request)) as items:
        async for item in items:
            if isinstance(item, Finished):
                finished = item
            else:
                token_ids.extend(item.token_ids)
                logprobs.extend(item.logprobs)
                text.append(item.text)
    assert finished is not None
    ended, error = finish_reason(finished.reason), None
    if ended not in ("stop", "length"):
        ended, error = "error", f"line {number}: {finished.detail or ended}"
    return BatchAnswer(
        line.id, token_ids, "".join(text), ended, logprobs, error, bool(line.top_logprobs)
    )
