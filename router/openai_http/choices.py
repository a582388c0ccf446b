"""The n answers to one request: n requests to the dispatcher, merged as their text comes.

Each has a seed of its own that the request's seed determines, and the first has that very seed, so
that asking for more answers does not change the ones there were.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Sequence

from protos.tandem.v1 import common_pb2
from router.dispatcher import Dispatcher
from router.requests import Delta, Finished, GenerationRequest

Item = tuple[int, Delta | Finished]

# Odd, so that no two choices share a seed, and large, so that neighbouring seeds do not either.
_SEED_STEP = 0x9E3779B97F4A7C15


def choices_of(request: GenerationRequest, n: int) -> list[GenerationRequest]:
    """The requests behind the n choices of one."""
    choices = [request]
    for index in range(1, n):
        sampling = common_pb2.SamplingParams()
        sampling.CopyFrom(request.sampling)
        sampling.seed = (sampling.seed + index * _SEED_STEP) % (1 << 64)
        request_id = f"{request.request_id}-{index}"
        choices.append(dataclasses.replace(request, request_id=request_id, sampling=sampling))
    return choices


async def generate_all(
    dispatcher: Dispatcher, requests: Sequence[GenerationRequest]
) -> AsyncGenerator[Item, None]:
    """What the requests give, each item with the index of its request, until all have finished.

    Must be closed by whoever leaves early, which cancels them all. Raises RequestError as
    `Dispatcher.generate` does.
    """
    answers = [dispatcher.generate(request) for request in requests]
    nexts: dict[asyncio.Future[Delta | Finished], int] = {}
    try:
        for index, answer in enumerate(answers):
            nexts[asyncio.ensure_future(anext(answer))] = index
        while nexts:
            done, _ = await asyncio.wait(nexts, return_when=asyncio.FIRST_COMPLETED)
            for came in done:
                index, item = nexts.pop(came), came.result()
                if isinstance(item, Delta):
                    nexts[asyncio.ensure_future(anext(answers[index]))] = index
                yield index, item
    finally:
        for waiting in nexts:
            waiting.cancel()
        if nexts:
            await asyncio.wait(nexts)
        for answer in answers:
            await answer.aclose()
