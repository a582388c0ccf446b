"""A stand-in for any OpenAI endpoint: streams scripted chunks, and can be as strict as some are."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web


@dataclass
class StandIn:
    """`chunks` are texts with how many tokens each has. `status` is that of all requests but the
    first, which asks for one token, unless `from_the_first`. With `hold`, answers stop after their
    first chunk until `go_on`; `open_now` is told through `changed`."""

    chunks: Sequence[tuple[str, int]] = ((" a", 1), (" b c", 2), (" d e f", 3))
    knows_chunk_usage: bool = True
    knows_ignore_eos: bool = True
    status: int = 200
    from_the_first: bool = False
    breaks_off: bool = False
    cuts_off: bool = False
    hold: bool = False
    bodies: list[dict[str, object]] = field(default_factory=list)
    open_now: int = 0
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def all_open(self, count: int) -> None:
        """Wait until so many answers are held."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.open_now >= count)

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "stand-in", "owned_by": "nobody"}]})

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        options = body.get("stream_options", {})
        strict = (not self.knows_chunk_usage and "continuous_usage_stats" in options) or (
            not self.knows_ignore_eos and "ignore_eos" in body
        )
        if strict:
            return web.json_response({"error": {"message": "extra inputs"}}, status=400)
        self.bodies.append(body)
        if self.status != 200 and (self.from_the_first or body["max_tokens"] > 1):
            error = {"error": {"message": "come again later"}}
            return web.json_response(error, status=self.status)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        made = 0
        chat = "messages" in body
        for place, (text, tokens) in enumerate(self.chunks):
            made += tokens
            choice = {"delta": {"content": text}} if chat else {"text": text}
            event: dict[str, object] = {"choices": [{**choice, "finish_reason": None}]}
            if options.get("continuous_usage_stats"):
                event["usage"] = {"completion_tokens": made, "prompt_tokens": 7}
            await _send(response, event)
            if self.breaks_off:
                return response
            if self.cuts_off and body["max_tokens"] > 1:
                assert request.transport is not None
                request.transport.abort()
                return response
            if self.hold and place == 0 and body["max_tokens"] > 1:
                await self._held()
        last: dict[str, object] = {"delta": {}} if chat else {"text": ""}
        await _send(response, {"choices": [{**last, "finish_reason": "length"}]})
        usage = {"completion_tokens": made, "prompt_tokens": 7}
        await _send(response, {"choices": [], "usage": usage})
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _held(self) -> None:
        async with self.changed:
            self.open_now += 1
            self.changed.notify_all()
        await self.go_on.wait()


async def _send(response: web.StreamResponse, event: dict[str, object]) -> None:
    await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")


@asynccontextmanager
async def serving(stand_in: StandIn) -> AsyncIterator[str]:
    """Its address while the block runs."""
    app = web.Application()
    app.add_routes(
        [
            web.get("/v1/models", stand_in.models),
            web.post("/v1/completions", stand_in.answer),
            web.post("/v1/chat/completions", stand_in.answer),
        ]
    )
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=4096)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
