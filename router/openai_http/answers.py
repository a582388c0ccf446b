"""Answers completions and chats, whole or as a stream of server-sent events."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import AsyncGenerator

from aiohttp import web

from router.core.reasons import WELL
from router.dispatcher import Dispatcher
from router.errors import failure
from router.openai_http.bodies import ChatBody, CompletionBody, parse_body
from router.openai_http.formats import (
    ChatFormat,
    CompletionFormat,
    Format,
    Json,
    error_json,
    report_json,
)
from router.requests import ClientRequest, Delta, Finished

_REPORT_HEADER = "x-tandem-report"


class Answers:
    """The two endpoints that generate."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/completions."""
        body = parse_body(CompletionBody, await request.read())
        model = self._dispatcher.model
        call = _Call(request, body.streamed, body.include_usage)
        items, request_id = await self._run(call, body.client_request(model))
        form = CompletionFormat(request_id, model.name, model.text, body.logprobs)
        return await call.answer(items, form, request_id)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/chat/completions."""
        body = parse_body(ChatBody, await request.read())
        model = self._dispatcher.model
        call = _Call(request, body.streamed, body.include_usage)
        items, request_id = await self._run(call, body.client_request(model))
        form = ChatFormat(request_id, model.name, model.text, bool(body.logprobs), body.streamed)
        return await call.answer(items, form, request_id)

    async def _run(
        self, call: _Call, client: ClientRequest
    ) -> tuple[AsyncGenerator[Delta | Finished, None], str]:
        prepared = await self._dispatcher.prepare(
            dataclasses.replace(client, request_id=call.request_id, traceparent=call.traceparent)
        )
        return self._dispatcher.generate(prepared), prepared.request_id


class _Call:
    """One HTTP request and how it wants to be answered."""

    def __init__(self, request: web.Request, streamed: bool, include_usage: bool) -> None:
        self._request = request
        self._streamed = streamed
        self._include_usage = include_usage
        self._with_report = request.headers.get(_REPORT_HEADER) == "1"
        self.request_id = request.headers.get("x-request-id", "")
        self.traceparent = request.headers.get("traceparent", "")

    async def answer(
        self, items: AsyncGenerator[Delta | Finished, None], form: Format, request_id: str
    ) -> web.StreamResponse:
        """Send what comes; raises RequestError for a failure before the first byte."""
        async with contextlib.aclosing(items):
            first = await anext(items)
            if isinstance(first, Finished):
                _raise_if_bad(first)
            if self._streamed:
                return await self._stream(first, items, form, request_id)
            return await self._whole(first, items, form, request_id)

    async def _whole(
        self,
        first: Delta | Finished,
        items: AsyncGenerator[Delta | Finished, None],
        form: Format,
        request_id: str,
    ) -> web.Response:
        deltas: list[Delta] = []
        item = first
        while isinstance(item, Delta):
            deltas.append(item)
            item = await anext(items)
        _raise_if_bad(item)
        answer = form.whole(deltas, item)
        if self._with_report:
            answer["tandem"] = report_json(item)
        return web.json_response(answer, headers={"x-request-id": request_id})

    async def _stream(
        self,
        first: Delta | Finished,
        items: AsyncGenerator[Delta | Finished, None],
        form: Format,
        request_id: str,
    ) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={
                "content-type": "text/event-stream; charset=utf-8",
                "cache-control": "no-cache",
                "x-accel-buffering": "no",  # nginx would hold tokens back
                "x-request-id": request_id,
            }
        )
        await response.prepare(self._request)
        opening = form.opening()
        if opening is not None:
            await response.write(self._event(opening))
        item = first
        while isinstance(item, Delta):
            piece = form.piece(item)
            if item.text or _has_logprobs(piece):
                await response.write(self._event(piece))
            item = await anext(items)
        await response.write(self._end(item, form))
        await response.write_eof()
        return response

    def _end(self, finished: Finished, form: Format) -> bytes:
        if finished.reason not in WELL:
            # The status line is gone, so the error comes in the stream, and no [DONE] after it.
            return _event(error_json(failure(finished.reason, finished.detail)))
        last = form.last_piece(finished)
        if self._with_report:
            last["tandem"] = report_json(finished)
        events = self._event(last)
        if self._include_usage:
            events += _event(form.usage_piece(finished))
        return events + b"data: [DONE]\n\n"

    def _event(self, piece: Json) -> bytes:
        # Clients that ask for usage expect the key in every piece.
        return _event({**piece, "usage": None} if self._include_usage else piece)


def _event(piece: Json) -> bytes:
    return b"data: " + json.dumps(piece, ensure_ascii=False).encode() + b"\n\n"


def _has_logprobs(piece: Json) -> bool:
    choices = piece["choices"]
    assert isinstance(choices, list)
    return choices[0]["logprobs"] is not None


def _raise_if_bad(finished: Finished) -> None:
    if finished.reason not in WELL:
        raise failure(finished.reason, finished.detail)
