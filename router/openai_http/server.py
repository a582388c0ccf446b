"""The HTTP server: its routes, and the one place where errors become answers."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Awaitable, Callable

from aiohttp import web

from protos.tandem.v1 import common_pb2
from router.access import Access, ssl_context
from router.config import RouterConfig
from router.errors import RequestError, presentation, retry_after
from router.metrics import CONTENT_TYPE
from router.models import Models
from router.openai_http.answers import TENANT, Answers
from router.openai_http.formats import error_json, error_object
from router.validation import ServedModel

_LOG = logging.getLogger(__name__)

_MODELS = web.AppKey("models", Models)
_ACCESS = web.AppKey("access", Access)
_OPEN_PATHS = frozenset({"/health", "/metrics"})
_CREATED = web.AppKey("created", int)
_GRACE_S = 2.0


class HttpServer:
    """Serves the OpenAI API at one address."""

    def __init__(self, models: Models, config: RouterConfig) -> None:
        """Raises OSError for TLS files that cannot be read."""
        self._shares_port = config.shares_ports
        self._ssl = None if config.tls is None else ssl_context(config.tls)
        app = web.Application(
            client_max_size=config.max_message_bytes, middlewares=[_tell_errors, _let_in]
        )
        app[_MODELS] = models
        app[_ACCESS] = Access(config.api_keys)
        app[_CREATED] = int(time.time())
        answers = Answers(models)
        app.add_routes(
            [
                web.get("/health", _health),
                web.get("/metrics", _metrics),
                web.get("/v1/models", _models),
                web.get("/v1/models/{model:.+}", _model),
                web.post("/v1/completions", answers.complete),
                web.post("/v1/chat/completions", answers.chat),
            ]
        )
        # A client that leaves cancels its handler, and with it its request.
        self._runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, shutdown_timeout=_GRACE_S
        )

    async def start(self, address: str) -> str:
        """Listen; returns the address with the port that was bound. Raises OSError."""
        host, _, port = address.rpartition(":")
        await self._runner.setup()
        try:
            await web.TCPSite(
                self._runner,
                host.strip("[]") or None,
                int(port),
                ssl_context=self._ssl,
                reuse_port=self._shares_port or None,
            ).start()
        except OSError as error:
            raise OSError(
                f"http: cannot listen on {address}: {error.strerror or error}; choose another port"
            ) from error
        return f"{host}:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        await self._runner.cleanup()


@web.middleware
async def _tell_errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Every error is OpenAI's error object, and none has a stack trace."""
    try:
        return await handler(request)
    except RequestError as error:
        headers = {"x-tandem-reason": common_pb2.ReasonCode.Name(error.reason)} | retry_after(error)
        status = presentation(error.reason).http_status
        return web.json_response(error_json(error), status=status, headers=headers)
    except web.HTTPRequestEntityTooLarge:
        limit = request.client_max_size
        message = f"the body is larger than {limit} bytes; send a shorter one"
        return web.json_response(error_object(message, "invalid_request_error"), status=413)
    except web.HTTPException as error:
        message = f"{request.method} {request.path}: {error.reason}"
        kind = "invalid_request_error" if error.status < 500 else "server_error"
        # Allow says what a 405 would have taken.
        headers = {key: error.headers[key] for key in ("Allow",) if key in error.headers}
        return web.json_response(error_object(message, kind), status=error.status, headers=headers)
    except Exception:  # noqa: BLE001 - the last line of defence, and logged
        reference = secrets.token_hex(4)
        _LOG.exception("internal error %s", reference)
        message = f"internal error; the router's log has it under {reference}"
        return web.json_response(error_object(message, "server_error"), status=500)


@web.middleware
async def _let_in(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Everything but what probes and scrapers ask for needs a key, where there are keys."""
    if request.path not in _OPEN_PATHS:
        authorization = request.headers.get("authorization")
        request[TENANT] = request.app[_ACCESS].tenant(authorization)
    return await handler(request)


async def _health(request: web.Request) -> web.Response:
    """200 when a request could be served, else 503."""
    ready = request.app[_MODELS].ready
    answer = {"status": "ok" if ready else "no decode worker is connected"}
    return web.json_response(answer, status=200 if ready else 503)


async def _metrics(request: web.Request) -> web.Response:
    text = await request.app[_MODELS].metrics_text()
    return web.Response(body=text.encode(), headers={"content-type": CONTENT_TYPE})


async def _models(request: web.Request) -> web.Response:
    served = [_model_json(request, one.model) for one in request.app[_MODELS]]
    return web.json_response({"object": "list", "data": served})


async def _model(request: web.Request) -> web.Response:
    try:
        model = request.app[_MODELS].of(request.match_info["model"]).model
    except RequestError as unknown:
        error = error_object(unknown.message, "invalid_request_error", "model", "model_not_found")
        return web.json_response(error, status=404)
    return web.json_response(_model_json(request, model))


def _model_json(request: web.Request, model: ServedModel) -> dict[str, object]:
    return {
        "id": model.name,
        "object": "model",
        "created": request.app[_CREATED],
        "owned_by": "tandem",
        "max_model_len": model.max_model_tokens,  # as vLLM calls it
    }
