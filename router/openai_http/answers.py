"""Answers completions and chats, whole or as a stream of server-sent events."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import AsyncGenerator, Sequence

from aiohttp import web

from router.core.reasons import WELL
from router.dispatcher import Dispatcher
from router.errors import failure
from router.models import Models
from router.openai_http.bodies import ChatBody, CompletionBody, parse_body
from router.openai_http.choices import Item, choices_of, generate_all
from router.openai_http.formats import (
    ChatFormat,
    Choice,
    CompletionFormat,
    Format,
    Json,
    error_json,
    report_json,
)
from router.requests import ClientRequest, Delta, Finished, GenerationRequest

# Where a request's tenant is written, for those who answer it.
TENANT = web.RequestKey("tenant", str)
_REPORT_HEADER = "x-tandem-report"


class Answers:
    """The two endpoints that generate."""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/completions."""
        body = parse_body(CompletionBody, await request.read())
        dispatcher = self._models.of(body.model)
        model = dispatcher.model
        call = _Call(request, body)
        requests = await _prepare(dispatcher, call, body.client_request(model))
        form = CompletionFormat(requests[0].request_id, model.name, model.text, body.logprobs)
        return await call.answer(generate_all(dispatcher, requests), form, requests)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/chat/completions."""
        body = parse_body(ChatBody, await request.read())
        dispatcher = self._models.of(body.model)
        model = dispatcher.model
        call = _Call(request, body)
        requests = await _prepare(dispatcher, call, body.client_request(model))
        request_id, logprobs = requests[0].request_id, bool(body.logprobs)
        form = ChatFormat(request_id, model.name, model.text, logprobs, body.streamed)
        return await call.answer(generate_all(dispatcher, requests), form, requests)


async def _prepare(
    dispatcher: Dispatcher, call: _Call, client: ClientRequest
) -> list[GenerationRequest]:
    prepared = await dispatcher.prepare(
        dataclasses.replace(
            client,
            request_id=call.request_id,
            traceparent=call.traceparent,
            received_s=call.received_s,
            tenant=call.tenant,
        )
    )
    return choices_of(prepared, call.choices)


class _Call:
    """One HTTP request and how it wants to be answered."""

    def __init__(self, request: web.Request, body: CompletionBody | ChatBody) -> None:
        self._request = request
        self._streamed = body.streamed
        self._include_usage = body.include_usage
        self._with_report = request.headers.get(_REPORT_HEADER) == "1"
        self.choices = body.choices
        self.tenant = request.get(TENANT, "")
        self.received_s = time.monotonic()
        self.request_id = request.headers.get("x-request-id", "")
        self.traceparent = request.headers.get("traceparent", "")

    async def answer(
        self,
        items: AsyncGenerator[Item, None],
        form: Format,
        requests: Sequence[GenerationRequest],
    ) -> web.StreamResponse:
        """Send what comes; raises RequestError for a failure before the first byte."""
        headers = {"x-request-id": requests[0].request_id}
        async with contextlib.aclosing(items):
            if not self._streamed:
                return await self._whole(items, form, headers)
            first = await anext(items)
            _raise_if_bad(first[1])
            return await self._stream(first, items, form, headers)

    async def _whole(
        self, items: AsyncGenerator[Item, None], form: Format, headers: dict[str, str]
    ) -> web.Response:
        deltas: list[list[Delta]] = [[] for _ in range(self.choices)]
        finished: dict[int, Finished] = {}
        async for index, item in items:
            _raise_if_bad(item)
            if isinstance(item, Delta):
                deltas[index].append(item)
            else:
                finished[index] = item
        choices = [Choice(deltas[index], finished[index]) for index in range(self.choices)]
        answer = form.whole(choices)
        if self._with_report:
            reports = [report_json(choice.finished) for choice in choices]
            answer["tandem"] = reports[0] if self.choices == 1 else reports
        return web.json_response(answer, headers=headers)

    async def _stream(
        self,
        first: Item,
        items: AsyncGenerator[Item, None],
        form: Format,
        headers: dict[str, str],
    ) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={
                "content-type": "text/event-stream; charset=utf-8",
                "cache-control": "no-cache",
                "x-accel-buffering": "no",  # nginx would hold tokens back
                **headers,
            }
        )
        await response.prepare(self._request)
        for index in range(self.choices):
            opening = form.opening(index)
            if opening is not None:
                await response.write(self._event(opening))
        finished: list[Finished] = []
        await self._write(response, first, form, finished)
        async for item in items:
            await self._write(response, item, form, finished)
            if finished and finished[-1].reason not in WELL:
                break
        else:
            if self._include_usage:
                await response.write(_event(form.usage_piece(finished)))
            await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    async def _write(
        self, response: web.StreamResponse, item: Item, form: Format, finished: list[Finished]
    ) -> None:
        """Write what a client sees of an item; an end goes to `finished` as well."""
        index, news = item
        if isinstance(news, Delta):
            piece = form.piece(index, news)
            if news.text or _has_logprobs(piece):
                await response.write(self._event(piece))
            return
        finished.append(news)
        if news.reason not in WELL:
            # The status line is gone, so the error comes in the stream, and no [DONE] after it.
            error = failure(news.reason, news.detail, news.retry_after_s)
            await response.write(_event(error_json(error)))
            return
        last = form.last_piece(index, news)
        if self._with_report:
            last["tandem"] = report_json(news)
        await response.write(self._event(last))

    def _event(self, piece: Json) -> bytes:
        # Clients that ask for usage expect the key in every piece.
        return _event({**piece, "usage": None} if self._include_usage else piece)


def _event(piece: Json) -> bytes:
    return b"data: " + json.dumps(piece, ensure_ascii=False).encode() + b"\n\n"


def _has_logprobs(piece: Json) -> bool:
    choices = piece["choices"]
    assert isinstance(choices, list)
    return choices[0]["logprobs"] is not None


def _raise_if_bad(item: Delta | Finished) -> None:
    if isinstance(item, Finished) and item.reason not in WELL:
        raise failure(item.reason, item.detail, item.retry_after_s)
