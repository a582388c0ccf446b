"""An answer as an asynchronous generator, for programs that would rather iterate than be called."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable

from router.answer import Answer
from router.requests import Delta, Finished


async def items_of(begin: Callable[[], Answer]) -> AsyncGenerator[Delta | Finished, None]:
    """Begin with the first iteration; Finished comes last, or RequestError instead of anything."""
    answer = begin()
    try:
        while True:
            item = await answer.next()
            yield item
            answer.sent()
            if isinstance(item, Finished):
                return
    finally:
        answer.leave()
