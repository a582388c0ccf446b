"""A whole router: a dispatcher for each model, behind one gRPC and one HTTP server."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

from router.config import ModelFolder, RouterConfig
from router.dispatcher import Dispatcher
from router.grpc_server import GrpcServer
from router.models import Models
from router.openai_http.server import HttpServer
from workers.telemetry import start_tracing

_GRACE_S = 2.0


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a router listens."""

    grpc: str
    http: str

    def to_json(self) -> str:
        return json.dumps(asdict(self))


class RouterServer:
    """Starts and stops everything that one router is."""

    def __init__(self, config: RouterConfig, validate: bool = False) -> None:
        """`validate` audits the core after each event. Raises ModelFilesError when the
        checkpoint's tokenizer or configuration is broken."""
        self._config = config
        self._tracing = start_tracing("tandem-router", config.trace)
        self.models = Models([Dispatcher(one, self._tracing, validate) for one in _single(config)])
        self._grpc: GrpcServer | None = None
        self._http: HttpServer | None = None

    async def start(self) -> Addresses:
        """Connect and listen. Raises OSError for an address that cannot be bound."""
        config = self._config
        for dispatcher in self.models:
            await dispatcher.start()
        self._grpc = GrpcServer(self.models, config)
        self._http = HttpServer(self.models, config)
        return Addresses(
            grpc=await self._grpc.start(config.grpc), http=await self._http.start(config.http)
        )

    async def stop(self) -> None:
        """End every request with REASON_SHUTTING_DOWN, tell the clients, and free everything."""
        for dispatcher in self.models:
            dispatcher.end_all()
        if self._grpc is not None:
            await self._grpc.stop(_GRACE_S)
        if self._http is not None:
            await self._http.stop()
        for dispatcher in self.models:
            await dispatcher.stop()
        self._tracing.close()


def _single(config: RouterConfig) -> Iterable[RouterConfig]:
    """What each model's dispatcher is told: itself first, then the others."""
    models = [ModelFolder(config.model_name, config.model_path), *config.more_models]
    for model in models:
        yield replace(
            config,
            model_name=model.name,
            model_path=model.path,
            more_models=tuple(one for one in models if one is not model),
            # Events are recorded of the first one.
            event_log=config.event_log if model is models[0] else None,
        )
