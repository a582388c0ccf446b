"""A client that answers as a script says, on whatever time the loop has."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from loadgen.clients.client import Ask, Endpoint
from loadgen.recording import Record


@dataclass
class ScriptedClient:
    """First token after `ttft_s`, further ones every `itl_s`; `fails` says which requests do not
    end well, by their number. With `slots`, others wait as behind a full server."""

    ttft_s: float = 0.1
    itl_s: float = 0.01
    fails: Callable[[int], str] = lambda number: ""
    slots: int = 1_000_000
    chunk_tokens: int = 1
    asks: list[Ask] = field(default_factory=list)
    open_now: int = 0
    most_open: int = 0
    closed: bool = False

    def __post_init__(self) -> None:
        self._free = asyncio.Semaphore(self.slots)

    async def open(self) -> Endpoint:
        return Endpoint("scripted", 100_000, 1000, is_tandem=False)

    async def ask(self, ask: Ask, record: Record) -> None:
        number = len(self.asks)
        self.asks.append(ask)
        self.open_now += 1
        self.most_open = max(self.most_open, self.open_now)
        record.send()
        try:
            async with self._free:
                await asyncio.sleep(self.ttft_s)
                if reason := self.fails(number):
                    record.end(reason, f"request {number}")
                    return
                left = ask.max_tokens
                while left:
                    tokens = min(left, self.chunk_tokens)
                    record.chunk(tokens)
                    record.answer_ids += [7000 + number] * tokens
                    left -= tokens
                    if left:
                        await asyncio.sleep(self.itl_s)
                record.end()
        finally:
            self.open_now -= 1

    async def close(self) -> None:
        self.closed = True
