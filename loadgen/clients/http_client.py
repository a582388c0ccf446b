"""OpenAI's HTTP, as vLLM, SGLang, Tandem and others speak it."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Sequence
from typing import Literal

import aiohttp
from aiohttp.http_exceptions import LineTooLong

from loadgen.clients import hints, http_faults
from loadgen.clients.client import Ask, Endpoint
from loadgen.clients.events import Piece, piece_of
from loadgen.errors import LoadError
from loadgen.prompts.tokens import TextTokens
from loadgen.recording import Record, Speculation

Api = Literal["completions", "chat"]

_ANSWER_TIMEOUT_S = 30.0
# A server may load what it needs before its first answer.
_FIRST_ANSWER_TIMEOUT_S = 120.0
# Less than servers keep an idle connection (uvicorn, and so vLLM, 5 s): one that a server closes
# just as it is used again looks like a request that failed.
_KEEPALIVE_S = 4.0
_BUFFER_BYTES = 2**18
_REPORT_HEADER = "x-tandem-report"
_REASON_HEADER = "x-tandem-reason"


class HttpClient:
    """Sends requests to one endpoint; each open request has a connection of its own.

    How many tokens a chunk brings, which says how far drafts were accepted, is told by the
    endpoint (`continuous_usage_stats`), else counted with a tokenizer. Tandem merges chunks under
    load, so there the engine's own report is taken instead.
    """

    def __init__(
        self,
        url: str,
        *,
        api: Api = "completions",
        model: str = "",
        api_key: str = "",
        tokenizer: TextTokens | None = None,
        timeout_s: float = 600.0,
        root_certificates: str | None = None,
    ) -> None:
        """`url` with or without /v1; `model` as the endpoint calls it, empty to ask it."""
        self._base = url.rstrip("/").removesuffix("/v1")
        self._api = api
        self._model = model
        self._tokenizer = tokenizer
        self._timeout_s = timeout_s
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._root_certificates = root_certificates
        self._session: aiohttp.ClientSession | None = None
        self._is_tandem = self._tells_usage = False
        self._knows_ignore_eos = True

    async def open(self) -> Endpoint:
        """Raises LoadError when nothing answers, or it does not name its model."""
        context = ssl.create_default_context(cafile=self._root_certificates)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=context, keepalive_timeout=_KEEPALIVE_S),
            timeout=aiohttp.ClientTimeout(total=self._timeout_s, sock_connect=60.0),
            read_bufsize=_BUFFER_BYTES,
            headers=self._headers,
        )
        found = await self._models()
        model = next((one for one in found if one.get("id") == self._model), found[0])
        self._model = self._model or str(model["id"])
        self._is_tandem = model.get("owned_by") == "tandem" or "tandem" in model
        if self._is_tandem:
            self._session.headers[_REPORT_HEADER] = "1"
        else:
            await self._learn_manners()
        length = model.get("max_model_len")
        return Endpoint(
            self._model, length if isinstance(length, int) else None, None, self._is_tandem
        )

    async def _models(self) -> Sequence[dict[str, object]]:
        assert self._session is not None
        url = f"{self._base}/v1/models"
        patience_s = min(_ANSWER_TIMEOUT_S, self._timeout_s)
        timeout = aiohttp.ClientTimeout(total=patience_s)
        try:
            async with self._session.get(url, timeout=timeout) as response:
                status, text = response.status, await response.text()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise http_faults.of_endpoint(self._base, error, patience_s) from error
        if status == 200:
            try:
                models: list[dict[str, object]] = json.loads(text)["data"]
                if models:
                    return models
            except (ValueError, KeyError, TypeError):
                text = "no list of models"
        if status in (401, 403):
            raise LoadError(f"--target {self._base}: {http_faults.shown(text)}", hints.NO_KEY)
        if self._model:
            return [{"id": self._model}]
        raise LoadError(
            f"--target {self._base}: GET /v1/models gives {status}: {http_faults.shown(text)}",
            "name the model with --served-model",
        )

    async def _learn_manners(self) -> None:
        """Which extensions of OpenAI's protocol the endpoint takes, by one request of one token."""
        patience_s = min(_FIRST_ANSWER_TIMEOUT_S, self._timeout_s)
        timeout = aiohttp.ClientTimeout(total=patience_s)
        for usage, eos in ((True, True), (False, True), (False, False)):
            self._tells_usage, self._knows_ignore_eos = usage, eos
            body = self._body(Ask(1, token_ids=(20,), messages=()))
            if self._api == "chat":
                body["messages"] = [{"role": "user", "content": "Hello"}]
            assert self._session is not None
            try:
                async with self._session.post(self._url, json=body, timeout=timeout) as response:
                    text = await response.text()
                    if response.status == 200:
                        return
            except (aiohttp.ClientError, TimeoutError) as error:
                raise http_faults.of_endpoint(self._url, error, patience_s) from error
            if response.status not in (400, 422):
                break
        raise http_faults.of_first_request(self._url, response.status, text)

    @property
    def _url(self) -> str:
        return f"{self._base}/v1/{'chat/' if self._api == 'chat' else ''}completions"

    def _body(self, ask: Ask) -> dict[str, object]:
        options: dict[str, object] = {"include_usage": True}
        if self._tells_usage:
            options["continuous_usage_stats"] = True
        body: dict[str, object] = {
            "model": self._model,
            "max_tokens": ask.max_tokens,
            "temperature": ask.temperature,
            "stream": True,
            "stream_options": options,
        }
        if ask.ignore_eos and self._knows_ignore_eos:
            body["ignore_eos"] = True
        if self._is_tandem and ask.class_name:
            body["priority_class"] = ask.class_name
        if self._api == "chat":
            body["messages"] = [
                {"role": message.role, "content": message.content} for message in ask.messages
            ]
        else:
            body["prompt"] = list(ask.token_ids)
        return body

    async def ask(self, ask: Ask, record: Record) -> None:
        assert self._session is not None
        body = self._body(ask)
        record.send()
        try:
            async with self._session.post(self._url, json=body) as response:
                if response.status != 200:
                    reason = response.headers.get(_REASON_HEADER, f"HTTP {response.status}")
                    record.end(reason, http_faults.shown(await response.text()))
                    return
                await self._read(response, record)
        except (aiohttp.ClientError, TimeoutError) as error:
            record.end(*http_faults.of_request(error, self._timeout_s))
        except LineTooLong:
            record.end("bad event", f"an event is longer than {2 * _BUFFER_BYTES} bytes")

    async def _read(self, response: aiohttp.ClientResponse, record: Record) -> None:
        usage_tokens: int | None = None
        steps = Speculation()
        done = False
        async for line in response.content:
            if not line.startswith(b"data:"):
                continue
            if line[5:].strip() == b"[DONE]":
                done = True
                break
            piece = piece_of(line[5:])
            if piece.error:
                record.end(piece.error_kind, piece.error)
                return
            record.finish = piece.finish or record.finish
            if piece.text:
                record.answer_text.append(piece.text)
                tokens = self._tokens_of(piece, usage_tokens or 0)
                record.chunk(tokens)
                steps.add_chunk(tokens)
            if piece.completion_tokens is not None:
                usage_tokens = piece.completion_tokens
            if piece.cached_tokens is not None:
                record.cached_tokens = piece.cached_tokens
            if piece.prompt_tokens is not None:
                record.counted_tokens = piece.prompt_tokens
            if piece.speculation is not None:
                record.speculation, record.measured = piece.speculation, "engine report"
        if usage_tokens is not None:
            record.tokens = usage_tokens
        if not self._is_tandem and (self._tells_usage or self._tokenizer is not None):
            record.speculation = steps
            record.measured = "usage of chunks" if self._tells_usage else "tokenised chunks"
        if not done and not record.finish:
            record.end("broken stream", "the stream ended without its last event")
            return
        record.end()

    def _tokens_of(self, piece: Piece, before: int) -> int:
        if self._tells_usage and piece.completion_tokens is not None:
            return max(0, piece.completion_tokens - before)
        if self._tokenizer is not None and not self._is_tandem:
            return len(self._tokenizer.encode(piece.text))
        return 1

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            # Connections with TLS close a turn of the loop later.
            await asyncio.sleep(0)
